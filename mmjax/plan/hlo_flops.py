"""FLOPs of single instructions of a compiled program, from their text; a multiply-add counts as 2."""

import math
import re
from collections.abc import Callable

import numpy as np

ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
Shape = tuple[int, ...]
SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)")


def flops_by(opcode: str, rest: str) -> Callable[[str, Shape, Shape, Shape], float] | None:
    """The function that counts an instruction's FLOPs; None: it has no matrix products.

    The function takes the text after the operands, and the shapes of the first result and the first two operands.
    Custom calls are counted for cuBLAS products, cuDNN attention, and JAX's splash attention on TPUs.
    """
    if opcode in ("dot", "convolution"):
        return {"dot": _dot, "convolution": _convolution}[opcode]
    called = re.search(r'custom_call_target="([^"]+)"', rest) if opcode == "custom-call" else None
    if called and called[1].startswith("__cublas$"):
        return _library_product
    if called and called[1].startswith("__cudnn$fmha"):
        return _library_attention
    if called and called[1] == "tpu_custom_call" and SPLASH.search(rest):
        return _splash_attention
    return None


def dimensions(shape: str) -> Shape:
    """The dimensions of an array, or of the first array of a tuple."""
    found = ARRAY.search(shape)
    return tuple(int(d) for d in found[2].split(",") if d) if found else ()


def _dot(rest: str, out: Shape, left: Shape, right: Shape) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)[1]
    return 2.0 * math.prod(out) * math.prod(left[int(d)] for d in contracted.split(",") if d)


def _convolution(rest: str, result: Shape, left: Shape, right: Shape) -> float:
    """As XLA counts them: products with padding or with the zeros of a dilated input do not count."""
    of_left, of_right, of_out = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", rest).groups()
    out = dict(zip(of_out, result, strict=True))
    window = dict(re.findall(r"(\w+)=([^\s}]+)", (re.search(r"window=\{([^}]*)\}", rest) or ["", ""])[1]))
    spatial = [label for label in of_right if label.isdigit()]
    products = 1.0
    for place, label in enumerate(sorted(spatial)):

        def setting(name: str, default: str, place: int = place) -> str:
            return window[name].split("x")[place] if name in window else default

        low = int(setting("pad", "0_0").split("_")[0])
        taps = range(int(setting("size", "1")))
        length = left[of_left.index(label)]
        dilated, spread = int(setting("lhs_dilate", "1")), int(setting("rhs_dilate", "1"))
        starts = np.arange(out[label]) * int(setting("stride", "1")) - low
        at = starts[:, None] + spread * np.array(taps)
        products *= ((at >= 0) & (at % dilated == 0) & (at // dilated < length)).sum()
    batch, features = out["b"], out["f"]
    depth = right[of_right.index("i")]
    return 2.0 * batch * features * depth * products


def _library_product(rest: str, out: Shape, left: Shape, right: Shape) -> float:
    contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', rest)[1]
    return 2.0 * math.prod(out) * math.prod(left[int(d)] for d in re.findall(r"\d+", contracted))


def _library_attention(rest: str, out: Shape, left: Shape, right: Shape) -> float:
    """Two products forward, five backward, where scores are recomputed."""
    scores = re.search(r'"intermediate_tensor_shape":.*?"dimensions":\s*\[([^\]]*)\]', rest)[1]
    products = 5 if "Backward" in rest else 2
    return products * 2.0 * math.prod(int(d) for d in re.findall(r"\d+", scores)) * left[-1]


def _splash_attention(rest: str, out: Shape, left: Shape, right: Shape) -> float:
    """JAX's splash kernels: 2 products forward; backward 3 for the queries, and 4 for keys and values."""
    operands = rest[rest.index("operand_layout_constraints=") :]
    (*queries, width), (*_, keys, _) = map(dimensions, re.findall(r"\bb?f\d+\[[\d,]*\]", operands)[:2])
    products = {"fwd": 2, "dq": 3, "dkv": 4}[SPLASH.search(rest)[1]]
    return products * 2.0 * math.prod(queries) * keys * width
