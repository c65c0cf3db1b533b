"""The gate's task: what Prefect and its automations are told of the verdict."""

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from etstpm.config import Config
from etstpm.gate import Verdict
from etstpm.runs import read_run
from etstpm.storage import Store

REGRESSED = "etstpm.auroc.regressed"


@task(name="gate", task_run_name="gate {run_id}", cache_policy=NO_CACHE)
def announce_verdict(config: Config, run_id: str) -> str | None:
    """Emit `etstpm.auroc.regressed` for a run that regressed; why it is kept back, else None."""
    record = read_run(Store(config.store), run_id)
    verdict = Verdict.from_record(record["verdict"])
    if verdict.has_passed:
        return None
    get_run_logger().warning("run %s is not the latest: %s", run_id, verdict.reason)
    if verdict.status == "regressed":
        emit_event(
            REGRESSED,
            resource={"prefect.resource.id": f"etstpm.run.{run_id}"},
            payload=record["verdict"],
        )
    return verdict.reason
