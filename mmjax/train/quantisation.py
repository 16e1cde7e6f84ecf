"""8-bit matrix products of activations with weights in the blocks of encoders and fusion, with qwix.

Forward products use int8 (or float8 e4m3). Each token of an activation and each output of a kernel has its own scale, its
largest magnitude, so the outputs of an example do not depend on its neighbours in a row. In the backward pass, products
for the gradient of an activation are quantised in the same way (float8: e5m2 for gradients). Products for the gradient of a
kernel sum over tokens, which excludes a scale per token, so they keep full precision. Parameters are not quantised.
Stems, heads, text decoders and the products inside attention are unchanged.
"""

from typing import Any

from mmjax.errors import UserError
from mmjax.models.roles import BLOCKS

# The function of all products with a kernel of the role "projection".
PRODUCT = "mmjax.models.layers.weight_product"
# The dtypes of the forward pass, and of gradients.
TYPES = {"int8": ("int8", "int8"), "fp8": ("float8_e4m3fn", "float8_e5m2")}


def quantised(model: Any, kind: str) -> Any:
    """The model with quantised matrix products of `kind`.

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

    class Provider(qwix.QtProvider):
        def get_intercept_map(self):
            return {PRODUCT: self.dot_general}

    return qwix.quantize_model(model, Provider([rule]), methods=("__call__", "predict"))
