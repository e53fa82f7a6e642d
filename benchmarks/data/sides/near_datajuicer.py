"""Near duplicates by Data-Juicer's MinHash deduplicator on a data set in memory."""

from data_juicer.ops.deduplicator.document_minhash_deduplicator import DocumentMinhashDeduplicator
from datasets import Dataset, disable_caching, disable_progress_bars
from measurement import Figures, Job, run_side


def measure(job: Job, figures: Figures) -> None:
    disable_caching()
    disable_progress_bars()
    data = Dataset.from_dict({"text": [row["text"] for row in job.read_rows()]})
    with figures.clock():
        step = DocumentMinhashDeduplicator(
            tokenization="space", window_size=1, num_permutations=128, jaccard_threshold=0.8
        )
        kept, _ = step.process(data.map(step.compute_hash, num_proc=None))
    figures.documents = len(data)
    figures.found = {"kept": len(kept)}


run_side(measure)
