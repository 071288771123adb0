"""The sizes of blocks: how the job's work is divided between actors."""

# Recordings in a block, at most: the input of one task of a Listener and of one call of an engine, and one file.
# Larger blocks cost less scheduling; smaller ones lose less when a node dies.
MAX_RECORDINGS_PER_BLOCK = 32
# Blocks in flight in one engine, so that the last clips of one are batched with others.
BLOCKS_PER_ENGINE = 4
# Bytes of samples in one output table of a Listener. Small recordings cost less together; the audio of a block of long
# ones should not be in memory twice.
LISTENED_BYTES = 16 << 20


def recordings_per_block(to_do: int, listeners: int) -> int:
    """How many recordings make a block: every Listener has several blocks, even of a short manifest."""
    return max(1, min(MAX_RECORDINGS_PER_BLOCK, to_do // (8 * listeners)))
