"""The default recipe by llamero in two worker processes: `recipe_llamero` with another number of workers."""

from measurement import run_side
from recipe_llamero import measure_with

run_side(lambda job, figures: measure_with(job, figures, workers=2))
