"""Sentences of a call centre: templates in English with their German, filled by ``demo.train.fillers``.

``{thing}`` is a slot. On the German side a slot may have a determiner, to be declined
(``{mein.acc:thing}``), or a dative (``{duration.dat}``). A second slot of one kind has a
suffix (``{city2}``). ``{rare}`` is a rare name; those templates have no German.

The split between training and test is by sentence: the hash of the rendered text decides, so that
no held-out sentence is in training, whatever the seed.
"""

import re
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random

from demo.train.fillers import FILLERS, Filling, decline
from demo.train.names import RareName, rare_name

# (English, German); the German is a literal translation.
TEMPLATES: tuple[tuple[str, str], ...] = (
    ("thank you for calling {company} my name is {name} how can i help you",
     "danke für ihren anruf bei {company} mein name ist {name} wie kann ich ihnen helfen"),
    ("good morning this is {name} from {company}", "guten morgen hier ist {name} von {company}"),
    ("good afternoon you are speaking with {name}", "guten tag sie sprechen mit {name}"),
    ("hello my name is {name} {surname}", "hallo mein name ist {name} {surname}"),
    ("hi this is {name} {surname} from {city}", "hallo hier ist {name} {surname} aus {city}"),
    ("my account number is {digits6}", "meine kontonummer ist {digits6}"),
    ("the account number is {digits8}", "die kontonummer ist {digits8}"),
    ("my customer number is {digits5}", "meine kundennummer ist {digits5}"),
    ("the order number is {digits4}", "die bestellnummer ist {digits4}"),
    ("the last four digits are {digits4}", "die letzten vier ziffern sind {digits4}"),
    ("the security code is {digits3}", "der sicherheitscode ist {digits3}"),
    ("my phone number is {digits3} {digits4}", "meine telefonnummer ist {digits3} {digits4}"),
    ("you can reach me at {digits3} {digits3b} {digits4}", "sie erreichen mich unter {digits3} {digits3b} {digits4}"),
    ("the booking code is {code}", "der buchungscode ist {code}"),
    ("i have the reference {code}", "ich habe die referenz {code}"),
    ("my email address is {email}", "meine email adresse ist {email}"),
    ("please send it to {email}", "bitte senden sie es an {email}"),
    ("i live at {number} {street} in {city}", "ich wohne in der {street} {number} in {city}"),
    ("we have moved to {street} {number} in {city}", "wir sind in die {street} {number} in {city} umgezogen"),
    ("can you tell me your date of birth", "können sie mir ihr geburtsdatum sagen"),
    ("i was born on {date}", "ich bin am {date} geboren"),
    ("my {device} {problem}", "{mein.nom:device} {problem}"),
    ("the {device} {problem}", "{der.nom:device} {problem}"),
    ("i bought the {device} on {date} in {city}", "ich habe {der.acc:device} am {date} in {city} gekauft"),
    ("i have a problem with my {thing}", "ich habe ein problem mit {mein.dat:thing}"),
    ("i am calling about my {thing}", "ich rufe wegen {mein.dat:thing} an"),
    ("i would like to cancel my {thing}", "ich möchte {mein.acc:thing} stornieren"),
    ("i want to change my {thing}", "ich will {mein.acc:thing} ändern"),
    ("i have not received my {thing} yet", "ich habe {mein.acc:thing} noch nicht erhalten"),
    ("where is my {thing}", "wo ist {mein.nom:thing}"),
    ("could you please check my {thing}", "könnten sie bitte {mein.acc:thing} prüfen"),
    ("i can see your {thing} here on my screen", "ich sehe {ihr.acc:thing} hier auf meinem bildschirm"),
    ("i will send you the {thing} by email", "ich schicke ihnen {der.acc:thing} per email"),
    ("we will send a new {thing} on {weekday}", "wir schicken am {weekday} {ein.acc:thing} als ersatz"),
    ("your {thing} was sent on {date}", "{ihr.nom:thing} wurde am {date} verschickt"),
    ("your {thing} will arrive on {weekday}", "{ihr.nom:thing} kommt am {weekday} an"),
    ("your {thing} is ready for collection in {city}", "{ihr.nom:thing} liegt in {city} zur abholung bereit"),
    ("the {thing} costs {amount}", "{der.nom:thing} kostet {amount}"),
    ("i was charged {amount} twice", "mir wurden {amount} zweimal berechnet"),
    ("i was charged {amount} on {date}", "mir wurden am {date} {amount} berechnet"),
    ("the total is {amount}", "der gesamtbetrag ist {amount}"),
    ("we will refund {amount} to your card", "wir erstatten {amount} auf ihre karte"),
    ("you owe us {amount}", "sie schulden uns {amount}"),
    ("i have already paid {amount}", "ich habe schon {amount} bezahlt"),
    ("the monthly fee is {amount}", "die monatliche gebühr ist {amount}"),
    ("we can offer you a discount of {percent}", "wir können ihnen einen rabatt von {percent} anbieten"),
    ("the price went up by {percent} in {month}", "der preis ist im {month} um {percent} gestiegen"),
    ("i need an appointment on {weekday} at {time}", "ich brauche einen termin am {weekday} um {time}"),
    ("the technician will come on {weekday} at {time}", "der techniker kommt am {weekday} um {time}"),
    ("can we meet on {date} at {time}", "können wir uns am {date} um {time} treffen"),
    ("we are open until {time} on {weekday}", "wir haben am {weekday} bis {time} geöffnet"),
    ("please call me back at {time}", "bitte rufen sie mich um {time} zurück"),
    ("i called you last {weekday} and spoke to {name}",
     "ich habe sie letzten {weekday} angerufen und mit {name} gesprochen"),
    ("i have been waiting for {duration}", "ich warte seit {duration.dat}"),
    ("it will take about {duration}", "es wird ungefähr {duration} dauern"),
    ("i have been a customer for {duration}", "ich bin seit {duration.dat} kunde"),
    ("please wait {duration} and try again", "bitte warten sie {duration} und versuchen sie es noch einmal"),
    ("the light on the {device} is {colour}", "das licht an {der.dat:device} ist {colour}"),
    ("is the light {colour} or {colour2}", "ist das licht {colour} oder {colour2}"),
    ("please turn the {device} off and on again", "bitte schalten sie {der.acc:device} aus und wieder ein"),
    ("have you restarted the {device}", "haben sie {der.acc:device} neu gestartet"),
    ("let me connect you to {department}", "ich verbinde sie mit {der.dat:department}"),
    ("may i speak to someone in {department}", "kann ich mit jemandem in {der.dat:department} sprechen"),
    ("my colleague {name} in {department} will help you", "mein kollege {name} in {der.dat:department} hilft ihnen"),
    ("i need {number} of them by {weekday}", "ich brauche {number} davon bis {weekday}"),
    ("the flight to {city} leaves at {time}", "der flug nach {city} geht um {time}"),
    ("i want to travel from {city} to {city2} on {date}", "ich möchte am {date} von {city} nach {city2} reisen"),
    ("a room in {city} for {number} nights", "ein zimmer in {city} für {number} nächte"),
    ("the contract ends in {month}", "der vertrag endet im {month}"),
    ("the warranty is valid until {date}", "die garantie gilt bis zum {date}"),
    ("can you spell your last name {surname}", "können sie ihren nachnamen {surname} buchstabieren"),
    ("yes that is {surname} with {number} letters", "ja das ist {surname} mit {number} buchstaben"),
    ("i will write {name} {surname} a note about the {thing}",
     "ich schreibe {name} {surname} eine notiz über {der.acc:thing}"),
    ("the {thing} is in the name of {name} {surname}", "{der.nom:thing} läuft auf den namen {name} {surname}"),
    ("is your address still {number} {street}", "ist ihre adresse noch {street} {number}"),
    ("someone stole my {thing} in {city}", "jemand hat {mein.acc:thing} in {city} gestohlen"),
    ("do you have a {device} in {colour}", "haben sie {ein.acc:device} in {colour}"),
    ("i forgot my {thing} at the office in {city}", "ich habe {mein.acc:thing} im büro in {city} vergessen"),
)  # fmt: skip

# No slot to fill: these are always trained on.
FIXED: tuple[tuple[str, str], ...] = (
    ("how can i help you today", "wie kann ich ihnen heute helfen"),
    ("one moment please", "einen moment bitte"),
    ("is there anything else i can do for you", "kann ich sonst noch etwas für sie tun"),
    ("thank you very much for your help", "vielen dank für ihre hilfe"),
    ("have a nice day", "einen schönen tag noch"),
    ("i am very sorry about that", "das tut mir sehr leid"),
    ("can you hear me", "können sie mich hören"),
    ("could you repeat that please", "könnten sie das bitte wiederholen"),
    ("yes that is correct", "ja das ist richtig"),
    ("no that is wrong", "nein das ist falsch"),
    ("please stay on the line", "bitte bleiben sie am apparat"),
    ("this call may be recorded", "dieser anruf kann aufgezeichnet werden"),
    ("let me check that for you", "ich prüfe das für sie"),
    ("i don't understand the question", "ich verstehe die frage nicht"),
    ("i'm not happy with the service", "ich bin mit dem service nicht zufrieden"),
    ("what is your name please", "wie ist ihr name bitte"),
    ("can i have your account number please", "kann ich bitte ihre kontonummer haben"),
    ("can you confirm your address", "können sie ihre adresse bestätigen"),
    ("that's perfect thank you", "das ist perfekt danke"),
    ("goodbye", "auf wiederhören"),
)

# Said by themselves before or after a sentence.
OPENERS = (
    ("okay", "okay"), ("yes", "ja"), ("no", "nein"), ("alright", "in ordnung"), ("well", "also"), ("sure", "sicher"),
    ("of course", "natürlich"), ("i see", "ich verstehe"), ("sorry", "entschuldigung"), ("excuse me", "verzeihung"),
)  # fmt: skip
CLOSERS = (("thank you", "danke"), ("thanks a lot", "vielen dank"), ("okay", "okay"), ("is that right", "stimmt das"))

# With a rare name; English only.
NAME_TEMPLATES: tuple[str, ...] = (
    "my name is {rare}",
    "this is {name} {rare}",
    "hello this is {rare} from {company}",
    "i spoke with mister {rare} last {weekday}",
    "please ask for doctor {rare}",
    "could i talk to missus {rare} please",
    "the account belongs to {rare} {surname}",
    "i am calling about my {rare} {device}",
    "the {rare} {device} {problem}",
    "do you still sell the {rare} {device}",
    "my last name is {rare}",
    "the hotel {rare} in {city} is full",
    "i ordered the {rare} on {date}",
    "it was signed by {rare} and {rare2}",
    "the new {rare} costs {amount}",
    "i would like to upgrade to {rare} {number}",
    "send the parcel to {rare} in {city}",
    "{name} {rare} will call you at {time}",
    "is the {rare} plan still available",
    "we work with {rare} and {company}",
)

_SLOT = re.compile(r"\{(?:(\w+)\.(nom|acc|dat):)?(\w+?)(2|b)?(?:\.(dat))?\}")
_HELD_OUT_SHARE = 0.08


@dataclass(frozen=True)
class Sentence:
    """``text`` is the reference, ``spoken`` the synthesiser's input, ``german`` empty where there is none."""

    text: str
    spoken: str
    german: str
    names: tuple[str, ...] = field(default=())


def is_held_out(text: str) -> bool:
    """Whether this sentence is kept for the test set and the samples."""
    return sha256(text.encode()).digest()[0] < 256 * _HELD_OUT_SHARE


def _expand(template: str, fillings: dict[str, Filling], language: str) -> str:
    def put(match: re.Match[str]) -> str:
        determiner, case, kind, again, dative = match.groups()
        filling = fillings[kind + (again or "")]
        if language == "en":
            return filling.en
        words = filling.dative if dative and filling.dative else filling.de
        return f"{decline(determiner, case, filling.gender)} {words}" if determiner and filling.gender else words

    return _SLOT.sub(put, template)


def _fill(template: str, rng: Random) -> dict[str, Filling]:
    fillings: dict[str, Filling] = {}
    for match in _SLOT.finditer(template):
        kind, again = match.group(3), match.group(4) or ""
        fillings[kind + again] = FILLERS[kind](rng)
    return fillings


def _core(rng: Random) -> Sentence:
    english, german = rng.choice(TEMPLATES)
    fillings = _fill(english, rng)
    text = _expand(english, fillings, "en")
    return Sentence(text, text, _expand(german, fillings, "de"))


def sentence(rng: Random, *, test: bool) -> Sentence:
    """A sentence of the training or of the held-out share; some have a word before or after."""
    if not test and rng.random() < 0.08:
        text, german = rng.choice(FIXED)
        return Sentence(text, text, german)
    core = _core(rng)
    while is_held_out(core.text) != test:
        core = _core(rng)
    text, german = core.text, core.german
    if rng.random() < 0.2:
        opener = rng.choice(OPENERS)
        text, german = f"{opener[0]} {text}", f"{opener[1]} {german}"
    if rng.random() < 0.12:
        closer = rng.choice(CLOSERS)
        text, german = f"{text} {closer[0]}", f"{german} {closer[1]}"
    return Sentence(text, text, german)


def held_out_sentence(start: str, rng: Random) -> Sentence:
    """A held-out filling of the template that begins with ``start``."""
    english, german = next(pair for pair in TEMPLATES if pair[0].startswith(start))
    for _ in range(2000):
        fillings = _fill(english, rng)
        text = _expand(english, fillings, "en")
        if is_held_out(text):
            return Sentence(text, text, _expand(german, fillings, "de"))
    raise LookupError(f"no filling of {english!r} is held out")


def name_sentence(rng: Random, *, test: bool) -> Sentence:
    """A sentence with one or two rare names, of the training names or of those held out for tests."""
    template = rng.choice(NAME_TEMPLATES)
    rare: dict[str, RareName] = {
        slot: rare_name(rng, held_out=test) for slot in ("rare", "rare2") if "{" + slot + "}" in template
    }
    plain = re.sub(r"\{rare2?\}", "", template)
    fillings = _fill(plain, rng)

    def read(use: str) -> str:
        words = template
        for slot, name in rare.items():
            words = words.replace("{" + slot + "}", getattr(name, use))
        return _expand(words, fillings, "en")

    return Sentence(read("written"), read("spoken"), "", tuple(name.written for name in rare.values()))


def part_of(whole: Sentence, rng: Random, max_words: int = 100) -> Sentence:
    """Some consecutive words, as a segmenter may cut them; without German."""
    words = whole.text.split()
    first = rng.randrange(max(1, len(words) - 1))
    last = rng.randrange(first + 1, min(first + max_words, len(words)) + 1)
    text = " ".join(words[first:last])
    return Sentence(text, text, "")


def join(sentences: list[Sentence]) -> Sentence:
    """Sentences concatenated; with German only if all have it."""
    german = [s.german for s in sentences]
    return Sentence(
        " ".join(s.text for s in sentences),
        " ".join(s.spoken for s in sentences),
        " ".join(german) if all(german) else "",
        tuple(name for s in sentences for name in s.names),
    )
