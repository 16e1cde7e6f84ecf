"""Where the computation runs: meshes, shardings, processes, and the settings of the compiler."""
