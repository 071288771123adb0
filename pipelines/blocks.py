"""The sizes of blocks: how the job's work is divided between actors.

The driver's work is by block (bench.driver), and so are the files. Smaller blocks lose less when a node dies.
"""

import math

# Recordings in a block, at most: the input of one task of a Listener. The first where every Listener has a few blocks,
# the second where it has many.
MAX_RECORDINGS_PER_BLOCK = 32
MAX_RECORDINGS_OF_MANY = 128
FEW_BLOCKS, MANY_BLOCKS = 8, 32
# Blocks in flight in one engine, at least, so that the last clips of one are batched with others.
BLOCKS_PER_ENGINE = 4
# Clips by which blocks fill an engine: 32 recordings of one clip are as many. A table of LISTENED_BYTES holds 17 of
# 30 s, and 65 of 8 s, the mean of calls. With fewer blocks, slots of an engine would be empty; with more, too many
# recordings would be tried again, each alone, when it dies.
CLIPS_PER_BLOCK = 32
# Bytes of samples in one output table of a Listener: the input of one call of an engine, and one file. Small recordings
# cost less together; the audio of a block of long ones should not be in memory twice. The second for MANY_ENGINES or
# more, as one driver counts the tables of all.
LISTENED_BYTES = 16 << 20
LISTENED_BYTES_OF_MANY = 64 << 20
MANY_ENGINES = 64


def recordings_per_block(to_do: int, listeners: int) -> int:
    """How many recordings make a block: every Listener has several blocks, even of a short manifest."""
    few = min(MAX_RECORDINGS_PER_BLOCK, to_do // (FEW_BLOCKS * listeners))
    many = min(MAX_RECORDINGS_OF_MANY, to_do // (MANY_BLOCKS * listeners))
    return max(1, few, many)


def listened_bytes(engines: int) -> int:
    """How many bytes of samples make a table."""
    return LISTENED_BYTES if engines < MANY_ENGINES else LISTENED_BYTES_OF_MANY


def blocks_per_engine(concurrent_clips: int, engines: int) -> int:
    """How many blocks are in flight in one engine: as many as fill it with clips."""
    clips = CLIPS_PER_BLOCK * listened_bytes(engines) // LISTENED_BYTES
    return max(BLOCKS_PER_ENGINE, math.ceil(concurrent_clips / clips))
