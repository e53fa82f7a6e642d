"""The trainings that `data.controls` sets beside a run's own: the same recipe, base and held-out records, other training records.

Each is a whole training in a folder of its own below the run's checkpoints, so that one that was interrupted goes on and one that is
done is left alone. Its adapter is measured and not served.
"""

import json

from llamero.spec.digest import digest_json
from llamero.spec.results import ControlResult, TrainingResult
from llamero.storage import write_atomically
from llamero.training.config import ControlConfig, TrainingConfig
from llamero.training.interruption import Interruption
from llamero.training.recipe import RESULT_FILE, train
from llamero.training.reporter import Reporter

CONTROLS_FOLDER = "controls"


def train_all(config: TrainingConfig, interruption: Interruption, reporter: Reporter) -> TrainingResult:
    """The run's own training, then its controls; result.json says at last how they compare. Raises as `recipe.train` does."""
    result = train(config, interruption, reporter)
    if not result.controls_pending:
        return result
    controls = [train_control(config, control, interruption, reporter) for control in config.controls]
    result = result.model_copy(update={"controls": [*result.controls, *controls], "controls_pending": False})
    write_atomically(config.checkpoints / RESULT_FILE, json.dumps(result.to_json_dict(), indent=2) + "\n")
    reporter.say("done", f"{len(controls)} controls trained")
    return result


def train_control(
    config: TrainingConfig, control: ControlConfig, interruption: Interruption, reporter: Reporter
) -> ControlResult:
    """One control, or what it left when it was trained before."""
    reporter.say(f"control {control.name}")
    own = build_control_config(config, control)
    (measured,) = train(own, interruption, reporter).controls
    kind = "random" if control.threshold is None else "threshold"
    return measured.model_copy(update={"name": control.name, "kind": kind, "threshold": control.threshold})


def build_control_config(config: TrainingConfig, control: ControlConfig) -> TrainingConfig:
    """The run's configuration with the control's records and folders; neither merged nor with controls of its own."""
    folder = config.checkpoints / CONTROLS_FOLDER / control.name
    return config.model_copy(
        update={
            "spec": config.spec.model_copy(update={"merge": False}),
            "train_tokens": control.train_tokens,
            "checkpoints": folder,
            "adapter": folder / "adapter",
            "merged": None,
            "data_digest": digest_json([config.data_digest, control.name]),
            "controls": [],
            "measure_held_out": True,
        }
    )
