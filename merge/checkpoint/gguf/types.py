"""The tensor types of GGUF that can be decoded: how many numbers a block holds in how many bytes."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockType:
    """``bits`` is what a number keeps of its precision: 0 where the type is a plain float."""

    name: str
    entries: int
    block_bytes: int
    bits: int = 0


TYPES: Mapping[int, BlockType] = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18, 4),
    3: BlockType("Q4_1", 32, 20, 4),
    6: BlockType("Q5_0", 32, 22, 5),
    7: BlockType("Q5_1", 32, 24, 5),
    8: BlockType("Q8_0", 32, 34, 8),
    10: BlockType("Q2_K", 256, 84, 2),
    11: BlockType("Q3_K", 256, 110, 3),
    12: BlockType("Q4_K", 256, 144, 4),
    13: BlockType("Q5_K", 256, 176, 5),
    14: BlockType("Q6_K", 256, 210, 6),
    20: BlockType("IQ4_NL", 32, 18, 4),
    23: BlockType("IQ4_XS", 256, 136, 4),
    28: BlockType("F64", 1, 8),
    30: BlockType("BF16", 1, 2),
    39: BlockType("MXFP4", 32, 17, 4),
}
"""By ggml's number of the type."""
OTHERS: Mapping[int, str] = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0",
    40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""Types that are known by name only."""
