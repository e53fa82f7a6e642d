"""A source's records made with a language model: a pool of instructions grown from human seeds (Self-Instruct, Alpaca)."""

from llamero.data.generating.growing import GeneratedRows as GeneratedRows
from llamero.data.generating.growing import Growth as Growth
from llamero.data.generating.growing import generate_rows as generate_rows
