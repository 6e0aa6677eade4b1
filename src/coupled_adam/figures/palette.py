"""How each optimizer looks and what it is called, in every picture of the book."""

from __future__ import annotations

# Okabe and Ito's palette: distinguishable with every common form of colour blindness. The live
# figures have the same colours in figures.css and the same names in common.js.
COLOURS = {"sgd": "#009E73", "adamw": "#D55E00", "coupled": "#0072B2"}
NAMES = {"sgd": "SGD", "adamw": "Adam", "coupled": "Coupled Adam"}
MARKERS = {"sgd": "s", "adamw": "o", "coupled": "D"}
