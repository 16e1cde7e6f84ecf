"""Several runs of one config: the folds of a cross-validation, or a grid of values, each with several seeds.

FOLDER/configs/NAME.json   the config of a run
FOLDER/logs/NAME.log       what its process printed
FOLDER/NAME/               its run directory; finished.json in it holds its metrics
FOLDER/results.json, .tsv  mean and standard deviation of each metric; results.png: a plot of them
"""

from mmjax.sweep.grid import Trial, folds, grid, read_over
from mmjax.sweep.results import collected, plot, shown, table, write
from mmjax.sweep.trials import Outcome, check, run_all
