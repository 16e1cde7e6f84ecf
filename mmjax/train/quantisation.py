"""Matrix products of few bits: those of activations with weights in the blocks of encoders and fusion, through qwix.

Forward products are of int8 (or float8 e4m3) numbers: each token of an activation and each output of a kernel has its own
scale, the largest of its numbers. So what an example gives does not depend on its neighbours in a row. In the backward pass
the products that give the gradient of an activation are quantised likewise (float8: e5m2 for gradients); those that give the
gradient of a kernel sum over the tokens of all examples, where a scale per token is not possible: they stay whole.
Parameters are float32 in any case, stems, heads, attention's own products and what writes text compute as without it.
"""

from typing import Any

from mmjax.errors import UserError

# Modules in which every product is one with a weight (`mmjax.models.layers.dense`, attention's projections).
WEIGHTS = "up|down|gate|qkv|query|key_value|query_key|value|out|pointwise_in|pointwise_out|scale|shift"
BLOCKS = rf"(encoders_[^/]+|fusion)/(.+/)?layers/(.+/)?({WEIGHTS})"
# Of numbers in the forward pass, and of gradients.
TYPES = {"int8": ("int8", "int8"), "fp8": ("float8_e4m3fn", "float8_e5m2")}


def quantised(model: Any, kind: str) -> Any:
    """The model, computing in products of `kind`.

    Raises:
      UserError: qwix is not installed.
    """
    try:
        import qwix
    except ImportError:
        raise UserError(
            f"model.matrix_products='{kind}' needs qwix: pip install 'mmjax[quantization]', or choose 'full'"
        ) from None
    forward, backward = TYPES[kind]
    rule = qwix.QtRule(
        module_path=BLOCKS,
        weight_qtype=forward,
        act_qtype=forward,
        additional_qt_config={
            "dlhs_grad_qtype": backward,
            "dlhs_residual_qtype": forward,
            "drhs_grad_qtype": None,
            "use_original_residuals": True,
        },
    )
    return qwix.quantize_model(model, qwix.QtProvider([rule]), methods=("__call__", "encode"))
