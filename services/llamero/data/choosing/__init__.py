"""Behind the steps that choose: vectors from words, clusters, neighbours and greedy choices (arrays in, arrays out), and the tables that
their tasks hand each other (`tables`, `parts`, `indicators`). What each step keeps stands in `llamero.data.steps`."""

from llamero.data.choosing.greedy import k_center as k_center
from llamero.data.choosing.greedy import k_center_distances as k_center_distances
from llamero.data.choosing.greedy import keep_dissimilar as keep_dissimilar
