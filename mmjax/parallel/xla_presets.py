"""Presets of compiler options by platform, each option with its effect and source.

They are passed with the step (`jax.jit(compiler_options=...)`), not through the environment, so that they can be checked,
are recorded with the run, and do not change other programs. The sources measured them on GPUs and TPUs; we did not.
A preset without an entry for a platform changes nothing there.

Sources: [1] docs/GPU_performance.md of NVIDIA's JAX-Toolbox, 2026. [2] AI-Hypercomputer's gpu-recipes, training of Llama 3.1 70B
on 256 H200. [3] benchmarks/xla_flags_library.py of MaxText. [4] JAX's documentation of XLA flags and of effort levels. [5] pull
request 6528 of pytorch/xla; compiled programs confirm it for libtpu 0.0.42 (docs/log.md).
"""

Options = dict[str, bool | int | float | str]

PRESETS: dict[str, dict[str, Options]] = {
    "default": {},
    # Overlaps communication with computation.
    "overlap": {
        "gpu": {
            # Schedules collectives concurrently with computation. [1] [2]
            "xla_gpu_enable_latency_hiding_scheduler": True,
            # Starts a loop's collectives one iteration early: gathers the next layer's parameters during this layer. [1] [2]
            "xla_gpu_enable_pipelined_all_gather": True,
            "xla_gpu_enable_pipelined_reduce_scatter": True,
            "xla_gpu_enable_pipelined_all_reduce": True,
            # Unrolls loops by two, which avoids copies of the buffers that are sent. [1] [2]
            "xla_gpu_enable_while_loop_double_buffering": True,
            # Combines small collectives up to this size; gathers may be large, since they start early. [2]
            "xla_gpu_all_gather_combine_threshold_bytes": 2**31,
            "xla_gpu_all_reduce_combine_threshold_bytes": 2**31,
            # About the gradients of one layer; with more, the first sum would wait for the last gradient. [1] [2]
            "xla_gpu_reduce_scatter_combine_threshold_bytes": 2**24,
        },
        "tpu": {
            # Splits gathers into steps between those of matrix products (continuation fusion, CF_FOR_ALL_GATHER). [3]
            "xla_tpu_enable_async_collective_fusion": True,
            "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
            "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
            "xla_tpu_overlap_compute_collective_tc": True,
            "xla_enable_async_all_gather": True,
            # Without it, from 64 devices on the compiler replaces every all-gather by an all-reduce over zeros, which sends
            # twice as much, and keeps the gathered parameters until the backward pass. [5]
            "xla_tpu_prefer_async_allgather_to_allreduce": True,
            # Sums gradients along the axis data during the rest of the backward pass (DATA_PARALLEL_OVERLAP). [3]
            "xla_tpu_enable_data_parallel_all_reduce_opt": True,
            "xla_tpu_data_parallel_opt_different_sized_ops": True,
        },
    },
    # Optimisation level O1: the compiler enables these options and others where it expects a gain. [1] [4]
    "o1": {"gpu": {"optimization_level": 19}, "tpu": {"optimization_level": 19}},
    # The same results in every run of a program. CPUs and TPUs are always deterministic.
    "deterministic": {
        "gpu": {
            # No kernels whose sums depend on the order of threads; scatters become slow. [4]
            "xla_gpu_deterministic_ops": True,
            # No autotuning, which may choose other kernels at the next start. [4]
            "xla_gpu_autotune_level": 0,
        }
    },
    # For short runs: faster compilation, slower steps.
    "compile_fast": {
        # Compilation takes 30 to 60 % of the time (docs/log.md).
        "cpu": {"xla_backend_optimization_level": 0},
        # Takes the first kernel instead of timing all. [4]
        "gpu": {"xla_gpu_autotune_level": 0},
    },
}
