"""Options of the compiler under short names, by platform: what each does, and who recommends it.

They are passed with the step (`jax.jit(compiler_options=...)`), not through the environment: so they can be checked, are
recorded with the run, and do not change other programs. None was timed here on a GPU or TPU; the sources have measured them.
A preset without an entry for a platform changes nothing there.

Sources: [1] docs/GPU_performance.md of NVIDIA's JAX-Toolbox, 2026. [2] AI-Hypercomputer's gpu-recipes, training of Llama 3.1 70B
on 256 H200. [3] benchmarks/xla_flags_library.py of MaxText. [4] JAX's documentation of XLA flags and of effort levels. [5] pull
request 6528 of pytorch/xla; that it is so with libtpu 0.0.42 shows in compiled programs (docs/log.md).
"""

Options = dict[str, bool | int | float | str]

PRESETS: dict[str, dict[str, Options]] = {
    "default": {},
    # Devices exchange while they compute.
    "overlap": {
        "gpu": {
            # Orders instructions so that collectives run behind computation. [1] [2]
            "xla_gpu_enable_latency_hiding_scheduler": True,
            # Begins a loop's collective one iteration early: gathers of the next layer's parameters behind this layer. [1] [2]
            "xla_gpu_enable_pipelined_all_gather": True,
            "xla_gpu_enable_pipelined_reduce_scatter": True,
            "xla_gpu_enable_pipelined_all_reduce": True,
            # Unrolls loops by two, so that what is sent need not be copied. [1] [2]
            "xla_gpu_enable_while_loop_double_buffering": True,
            # Small collectives are joined up to so many bytes; a gather may be large, since it starts early. [2]
            "xla_gpu_all_gather_combine_threshold_bytes": 2**31,
            "xla_gpu_all_reduce_combine_threshold_bytes": 2**31,
            # About the gradients of one layer, or the first sum would wait for the last gradient. [1] [2]
            "xla_gpu_reduce_scatter_combine_threshold_bytes": 2**24,
        },
        "tpu": {
            # Splits gathers into steps between those of matrix products (continuation fusion, CF_FOR_ALL_GATHER). [3]
            "xla_tpu_enable_async_collective_fusion": True,
            "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
            "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
            "xla_tpu_overlap_compute_collective_tc": True,
            "xla_enable_async_all_gather": True,
            # Among 64 devices and more the compiler would make of every gather a sum over zeros, which sends twice as much, and
            # keep what is gathered from the forward pass for the backward one. [5]
            "xla_tpu_prefer_async_allgather_to_allreduce": True,
            # Sums gradients along the axis data while the rest of the backward pass runs (DATA_PARALLEL_OVERLAP). [3]
            "xla_tpu_enable_data_parallel_all_reduce_opt": True,
            "xla_tpu_data_parallel_opt_different_sized_ops": True,
        },
    },
    # The compiler chooses by itself what the level O1 stands for: the same and more, where it expects a gain. [1] [4]
    "o1": {"gpu": {"optimization_level": 19}, "tpu": {"optimization_level": 19}},
    # The same numbers in every run of a program. CPUs and TPUs give them in any case.
    "deterministic": {
        "gpu": {
            # No kernels whose sums depend on the order in which threads arrive; scatters become slow. [4]
            "xla_gpu_deterministic_ops": True,
            # No choice of kernels by a race, which another start might decide otherwise. [4]
            "xla_gpu_autotune_level": 0,
        }
    },
    # For short runs: the program is compiled sooner and runs more slowly.
    "compile_fast": {
        # 30 to 60 % of the time to compile (docs/log.md).
        "cpu": {"xla_backend_optimization_level": 0},
        # Takes the first kernel instead of timing them all. [4]
        "gpu": {"xla_gpu_autotune_level": 0},
    },
}
