"""Stand-ins for text-generation-inference and vLLM: their published contracts, traps included, answered by a real tiny Llama.

They know nothing of llamero. The Llama is computed with numpy, so that a server starts in half a second.
"""
