"""Weights of randomly initialised `transformers` models, in the layout of our modules: for tests of parity."""

import numpy as np


def randomised(model, seed=0):
    """Gives every parameter of a torch model a random value, norms about 1; returns them by name as NumPy arrays."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.2 * torch.randn(parameter.shape, generator=generator)
            is_scale = "norm" in name.lower() or ".ln_" in name or "lambda" in name
            parameter.copy_(noise + 1.0 if is_scale and name.endswith(("weight", "lambda1")) else noise)
    model.eval()
    return {name: value.numpy() for name, value in model.state_dict().items()}


def linear(weights, name, transposed=True):
    """A torch linear layer [out, in] (or, not transposed, GPT-2's [in, out])."""
    kernel = weights[f"{name}.weight"]
    result = {"kernel": kernel.T if transposed else kernel}
    return result | ({"bias": weights[f"{name}.bias"]} if f"{name}.bias" in weights else {})


def norm(weights, name):
    result = {"scale": weights[f"{name}.weight"]}
    return result | ({"bias": weights[f"{name}.bias"]} if f"{name}.bias" in weights else {})


def projection(layers, heads):
    """Linear layers [W, heads * D] side by side, as one `HeadProjection`: [W, count, heads, D]."""
    kernel = np.stack([layer["kernel"] for layer in layers], axis=1)
    result = {"kernel": kernel.reshape(*kernel.shape[:2], heads, -1)}
    if "bias" in layers[0]:
        result["bias"] = np.stack([layer["bias"] for layer in layers]).reshape(len(layers), heads, -1)
    return result


def output(layer, heads):
    """A linear layer [heads * D, W] as `OutputProjection`: [heads, D, W]."""
    return layer | {"kernel": layer["kernel"].reshape(heads, -1, layer["kernel"].shape[1])}


def attention(weights, name, heads, query="q_proj", key="k_proj", value="v_proj", out="out_proj"):
    """A self-attention whose queries, keys and values have as many heads."""
    layers = [linear(weights, f"{name}.{part}") for part in (query, key, value)]
    return {"qkv": projection(layers, heads), "out": output(linear(weights, f"{name}.{out}"), heads)}


def mlp(weights, name, up="fc1", down="fc2"):
    return {"up": linear(weights, f"{name}.{up}"), "down": linear(weights, f"{name}.{down}")}
