"""Slot fillings: each spoken in English and rendered in German at the same time.

Every filler takes the random generator and returns a ``Filling``. The German side has the forms
that the templates need (a noun declines with its article, a duration has a dative), so that the
parallel text is grammatical for every filling. All text is lower-case, unpunctuated, with numbers
as words: the written form of the transcripts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

Gender = Literal["m", "f", "n"]


@dataclass(frozen=True)
class Filling:
    """One slot's words: ``en`` as spoken, ``de`` as translated, ``dative`` where it differs from ``de``."""

    en: str
    de: str
    dative: str | None = None
    gender: Gender | None = None


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


ONES = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
TENS = words("_ _ twenty thirty forty fifty sixty seventy eighty ninety")
ONES_DE = words(
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn "
    "sechzehn siebzehn achtzehn neunzehn"
)
TENS_DE = words("_ _ zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")

ORDINALS = words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
    "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth"
)
ORDINALS_DE = words(
    "ersten zweiten dritten vierten fünften sechsten siebten achten neunten zehnten elften zwölften "
    "dreizehnten vierzehnten fünfzehnten sechzehnten siebzehnten achtzehnten neunzehnten"
)

MONTHS = (
    ("january", "januar"), ("february", "februar"), ("march", "märz"), ("april", "april"), ("may", "mai"),
    ("june", "juni"), ("july", "juli"), ("august", "august"), ("september", "september"),
    ("october", "oktober"), ("november", "november"), ("december", "dezember"),
)  # fmt: skip
WEEKDAYS = (
    ("monday", "montag"), ("tuesday", "dienstag"), ("wednesday", "mittwoch"), ("thursday", "donnerstag"),
    ("friday", "freitag"), ("saturday", "samstag"), ("sunday", "sonntag"),
)  # fmt: skip

FIRST_NAMES = words(
    "anna peter maria david sarah thomas julia robert laura martin emma daniel sophie michael lisa paul "
    "helen andrew nina george olivia kevin rachel simon clara oscar diana victor alice frank monica henry "
    "susan patrick karen leo amanda felix grace max irene hugo carol ben vanessa tom"
)
SURNAMES = words(
    "miller cooper taylor walker johnson harris wilson bennett carter fisher murphy parker turner morgan "
    "hughes foster graham watson palmer gibson barnes hudson porter dixon sanders lambert norton baker "
    "collins russell griffin perry marshall hamilton bishop"
)

NOUNS: tuple[tuple[str, str, Gender], ...] = (
    ("router", "router", "m"), ("invoice", "rechnung", "f"), ("phone", "telefon", "n"),
    ("contract", "vertrag", "m"), ("order", "bestellung", "f"), ("parcel", "paket", "n"),
    ("credit card", "kreditkarte", "f"), ("modem", "modem", "n"), ("laptop", "laptop", "m"),
    ("printer", "drucker", "m"), ("tablet", "tablet", "n"), ("headset", "headset", "n"),
    ("account", "konto", "n"), ("subscription", "abonnement", "n"), ("password", "passwort", "n"),
    ("delivery", "lieferung", "f"), ("refund", "erstattung", "f"), ("appointment", "termin", "m"),
    ("television", "fernseher", "m"), ("washing machine", "waschmaschine", "f"),
    ("fridge", "kühlschrank", "m"), ("camera", "kamera", "f"), ("battery", "batterie", "f"),
    ("charger", "ladegerät", "n"), ("keyboard", "tastatur", "f"), ("screen", "bildschirm", "m"),
    ("payment", "zahlung", "f"), ("receipt", "quittung", "f"), ("ticket", "ticket", "n"),
    ("reservation", "reservierung", "f"), ("insurance", "versicherung", "f"), ("booking", "buchung", "f"),
)  # fmt: skip
DEVICES = {
    "router", "phone", "modem", "laptop", "printer", "tablet", "headset", "television", "washing machine",
    "fridge", "camera", "charger", "keyboard", "screen", "battery",
}  # fmt: skip

CITIES = (
    ("london", "london"), ("berlin", "berlin"), ("munich", "münchen"), ("chicago", "chicago"),
    ("vienna", "wien"), ("boston", "boston"), ("dublin", "dublin"), ("hamburg", "hamburg"),
    ("cologne", "köln"), ("toronto", "toronto"), ("manchester", "manchester"), ("zurich", "zürich"),
    ("bristol", "bristol"), ("sydney", "sydney"), ("denver", "denver"), ("frankfurt", "frankfurt"),
    ("glasgow", "glasgow"), ("seattle", "seattle"), ("geneva", "genf"), ("prague", "prag"),
)  # fmt: skip
STREETS = (
    "oak street", "river road", "park lane", "mill street", "garden avenue", "station road", "church street",
    "hill road",
)  # fmt: skip
COMPANIES = (
    "bluebird telecom", "harbor bank", "green valley energy", "acorn insurance", "swift parcel", "northern light",
    "silver lake travel", "orchard home", "red maple airlines", "summit mobile",
)  # fmt: skip
DEPARTMENTS = (
    ("billing", "rechnungsabteilung"), ("technical support", "technikabteilung"), ("sales", "verkaufsabteilung"),
    ("shipping", "versandabteilung"), ("claims", "schadensabteilung"), ("customer service", "kundendienstabteilung"),
)  # fmt: skip
PROBLEMS = (
    ("is broken", "ist kaputt"), ("has stopped working", "funktioniert nicht mehr"), ("is missing", "fehlt"),
    ("arrived damaged", "kam beschädigt an"), ("will not turn on", "lässt sich nicht einschalten"),
    ("is too slow", "ist zu langsam"), ("makes a strange noise", "macht ein seltsames geräusch"),
    ("has the wrong colour", "hat die falsche farbe"), ("gets very hot", "wird sehr heiß"),
    ("does not connect to the internet", "verbindet sich nicht mit dem internet"),
    ("shows an error message", "zeigt eine fehlermeldung"), ("keeps switching off", "schaltet sich immer wieder aus"),
)  # fmt: skip
COLOURS = (
    ("red", "rot"), ("green", "grün"), ("blue", "blau"), ("yellow", "gelb"), ("white", "weiß"),
    ("orange", "orange"), ("black", "schwarz"), ("purple", "lila"),
)  # fmt: skip
UNITS = (
    ("minutes", "minuten", "minuten"), ("hours", "stunden", "stunden"), ("days", "tage", "tagen"),
    ("weeks", "wochen", "wochen"), ("months", "monate", "monaten"), ("years", "jahre", "jahren"),
)  # fmt: skip
CURRENCIES = (("dollars", "dollar"), ("euros", "euro"), ("pounds", "pfund"))
PROVIDERS = (("gmail", "com"), ("outlook", "com"), ("yahoo", "com"), ("web", "net"), ("post", "org"))
NATO = words(
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey yankee zulu"
)

# Endings of the German ein-words (mein, ihr, ein, kein) and of the definite article.
_ENDINGS = {
    "nom": {"m": "", "f": "e", "n": ""},
    "acc": {"m": "en", "f": "e", "n": ""},
    "dat": {"m": "em", "f": "er", "n": "em"},
}
_DEFINITE = {
    "nom": {"m": "der", "f": "die", "n": "das"},
    "acc": {"m": "den", "f": "die", "n": "das"},
    "dat": {"m": "dem", "f": "der", "n": "dem"},
}


def decline(determiner: str, case: str, gender: Gender) -> str:
    """The determiner's form: ``decline("mein", "acc", "m")`` is ``meinen``."""
    if determiner == "der":
        return _DEFINITE[case][gender]
    return determiner + _ENDINGS[case][gender]


def number_en(n: int) -> str:
    """An English cardinal below a million, with "and" after the hundreds."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + (f" {ONES[n % 10]}" if n % 10 else "")
    if n < 1000:
        return f"{ONES[n // 100]} hundred" + (f" and {number_en(n % 100)}" if n % 100 else "")
    rest = n % 1000
    joint = "" if not rest else f" and {number_en(rest)}" if rest < 100 else f" {number_en(rest)}"
    return f"{number_en(n // 1000)} thousand{joint}"


def number_de(n: int, *, before_noun: bool = True) -> str:
    """A German cardinal below a million, in one word."""
    if n == 1 and before_noun:
        return "ein"
    if n < 20:
        return ONES_DE[n]
    if n < 100:
        return (f"{number_de(n % 10)}und" if n % 10 else "") + TENS_DE[n // 10]
    if n < 1000:
        return f"{number_de(n // 100)}hundert" + (number_de(n % 100, before_noun=False) if n % 100 else "")
    rest = number_de(n % 1000, before_noun=False) if n % 1000 else ""
    return f"{number_de(n // 1000)}tausend{rest}"


def _same(words: str) -> Filling:
    return Filling(words, words)


def _pair(options: tuple[tuple[str, str], ...]) -> Callable[[Random], Filling]:
    return lambda rng: Filling(*rng.choice(options))


def _noun(rng: Random, among: Callable[[str], bool] = lambda en: True) -> Filling:
    en, de, gender = rng.choice([noun for noun in NOUNS if among(noun[0])])
    return Filling(en, de, gender=gender)


def _digits(count: int) -> Callable[[Random], Filling]:
    def fill(rng: Random) -> Filling:
        chosen = [rng.randrange(10) for _ in range(count)]
        return Filling(" ".join(ONES[d] for d in chosen), " ".join(ONES_DE[d] for d in chosen))

    return fill


def _code(rng: Random) -> Filling:
    """A booking code: letters in the spelling alphabet, then digits."""
    letters = " ".join(rng.choice(NATO) for _ in range(rng.choice((1, 2, 2, 3))))
    digits = _digits(rng.choice((2, 3)))(rng)
    return Filling(f"{letters} {digits.en}", f"{letters} {digits.de}")


def _amount(rng: Random) -> Filling:
    n = rng.choice((rng.randrange(2, 100), rng.randrange(2, 100), rng.randrange(100, 1000), rng.randrange(1000, 10000)))
    en, de = rng.choice(CURRENCIES)
    amount = Filling(f"{number_en(n)} {en}", f"{number_de(n)} {de}")
    if n < 100 and rng.random() < 0.4:
        cents = rng.randrange(2, 100)
        return Filling(f"{amount.en} and {number_en(cents)} cents", f"{amount.de} und {number_de(cents)} cent")
    return amount


def _date(rng: Random) -> Filling:
    day = rng.randrange(1, 31)
    if day < 20:
        en, de = ORDINALS[day - 1], ORDINALS_DE[day - 1]
    else:
        tens, ones = divmod(day, 10)
        en = f"{TENS[tens]} {ORDINALS[ones - 1]}" if ones else TENS[tens][:-1] + "ieth"
        de = (f"{number_de(ones)}und" if ones else "") + TENS_DE[tens] + "sten"
    month_en, month_de = rng.choice(MONTHS)
    return Filling(f"the {en} of {month_en}" if rng.random() < 0.5 else f"{month_en} {en}", f"{de} {month_de}")


def _time(rng: Random) -> Filling:
    hour = rng.randrange(1, 12)
    following = hour + 1
    return rng.choice(
        (
            Filling(f"{ONES[hour]} o'clock", f"{number_de(hour)} uhr"),
            Filling(f"half past {ONES[hour]}", f"halb {number_de(following)}"),
            Filling(f"quarter past {ONES[hour]}", f"viertel nach {number_de(hour, before_noun=False)}"),
            Filling(f"quarter to {ONES[following]}", f"viertel vor {number_de(following)}"),
            Filling(f"{ONES[hour]} thirty", f"{number_de(hour)} uhr dreißig"),
        )
    )


def _duration(rng: Random) -> Filling:
    n = rng.randrange(2, 30)
    en, de, dative = rng.choice(UNITS)
    return Filling(f"{number_en(n)} {en}", f"{number_de(n)} {de}", dative=f"{number_de(n)} {dative}")


def _email(rng: Random) -> Filling:
    provider, domain = rng.choice(PROVIDERS)
    first, last = rng.choice(FIRST_NAMES), rng.choice(SURNAMES)
    user_en, user_de = rng.choice(((f"{first} dot {last}", f"{first} punkt {last}"), (f"{first} {last}",) * 2))
    return Filling(f"{user_en} at {provider} dot {domain}", f"{user_de} at {provider} punkt {domain}")


def _percent(rng: Random) -> Filling:
    n = rng.choice((5, 10, 12, 15, 18, 20, 25, 30, 40, 50, 75))
    return Filling(f"{number_en(n)} percent", f"{number_de(n)} prozent")


def _number(rng: Random) -> Filling:
    n = rng.randrange(2, 100)
    return Filling(number_en(n), number_de(n))


FILLERS: dict[str, Callable[[Random], Filling]] = {
    "name": lambda rng: _same(rng.choice(FIRST_NAMES)),
    "surname": lambda rng: _same(rng.choice(SURNAMES)),
    "company": lambda rng: _same(rng.choice(COMPANIES)),
    "street": lambda rng: _same(rng.choice(STREETS)),
    "city": _pair(CITIES),
    "thing": _noun,
    "device": lambda rng: _noun(rng, DEVICES.__contains__),
    "department": lambda rng: Filling(*rng.choice(DEPARTMENTS), gender="f"),
    "problem": _pair(PROBLEMS),
    "colour": _pair(COLOURS),
    "weekday": _pair(WEEKDAYS),
    "month": _pair(MONTHS),
    "date": _date,
    "time": _time,
    "duration": _duration,
    "amount": _amount,
    "percent": _percent,
    "number": _number,
    "code": _code,
    "email": _email,
    "digits3": _digits(3),
    "digits4": _digits(4),
    "digits5": _digits(5),
    "digits6": _digits(6),
    "digits8": _digits(8),
}
