"""The pod that looks whether a job's data has changed: it lists and fingerprints the sources and reads no record."""

from llamero.lifecycle.failures import PhaseExit
from llamero.pods.inputs import locate_base, place_job
from llamero.pods.pod import Pod
from llamero.pods.prepare import explain_data_error
from llamero.spec.tasks import Outcome, WorkMessage


def probe(message: WorkMessage, pod: Pod) -> Outcome:
    """Do a `probe` attempt: the digest that the data would have now. Raises AttemptFailure, ModelError, StorageError."""
    from llamero.data.prepare import DataError, plan_data

    job = place_job(message.manifest, pod.settings.storage)
    base = locate_base(message, job.spec, pod)
    try:
        plan = plan_data(job.spec, base.digest)
    except DataError as error:
        raise explain_data_error(error) from error
    return pod.answer(PhaseExit.DONE).model_copy(update={"data_digest": plan.digest})
