"""The component's job kind ``deploy``: done when the new revision serves."""

from burnish.components.model_serving import store
from burnish.components.model_serving.engines import find
from burnish.components.model_serving.service import Deployments
from burnish.components.model_serving.tables import Revision
from burnish.core.errors import BurnishError, Conflict, ErrorBody, FieldProblem, JobFailed, all_errors
from burnish.core.specs.serving import DeployResult, DeploySpec
from burnish.core.states import RevisionState
from burnish.infra.database import utcnow
from burnish.platform.jobs.schemas import Check, Kind, LightJob, Wait

_POLL_SECONDS = 0.2
_PHASES = {
    RevisionState.STARTING: "checking the files and starting the replica",
    RevisionState.VERIFYING: "loading the model and letting it generate",
}


def deploy_kind(deployments: Deployments) -> Kind:
    """Return the kind ``deploy`` over these rules."""

    async def advance(job: LightJob) -> DeployResult | Wait:
        return await _advance(deployments, job)

    async def checked(check: Check) -> list[FieldProblem]:
        return _check(deployments, check)

    return Kind(
        spec=DeploySpec,
        result=DeployResult,
        summary="Put a model version behind a deployment's name; done when the new revision serves",
        advance=advance,
        check=checked,
        permission="model:deploy",
    )


async def _advance(deployments: Deployments, job: LightJob) -> DeployResult | Wait:
    spec: DeploySpec = job.spec
    if job.cancel_requested:
        return await _cancel(deployments, job)
    async with job.database.write() as session:
        requested = await deployments.deploy(session, job.project_id, spec, job.job_id)
        revision = await store.revision(session, requested.deployment_id, requested.revision)
        assert revision is not None, "just asked for"
    if not requested.switched:
        return DeployResult(
            deployment=spec.deployment, revision=revision.number, replaced=None, model=spec.model, switched=False,
            ready_seconds=0.0,
        )  # fmt: skip
    state = RevisionState(revision.state)
    if revision.ready_at is not None and revision.error is None:
        return _result(spec, revision)
    if state is RevisionState.FAILED:
        raise error_of(ErrorBody.model_validate(revision.error))
    if state not in _PHASES:
        raise Conflict(
            f"revision {revision.number} of {spec.deployment} was superseded before it served",
            hint="another deploy, a roll back or a stop came after it",
        )
    waited = (utcnow() - revision.created_at).total_seconds()
    await job.progress(0, 1, f"{_PHASES[state]} ({waited:.0f} s)")
    return Wait(_POLL_SECONDS, _PHASES[state])


async def _cancel(deployments: Deployments, job: LightJob) -> DeployResult | Wait:
    """Give up what does not serve yet, and wait until its replicas are gone; a switch that happened stays."""
    async with job.database.write() as session:
        await deployments.abandon(session, job.project_id, job.job_id)
        revision = await store.revision_of_job(session, job.project_id, job.job_id)
    if revision is not None and revision.ready_at is not None and revision.error is None:
        return _result(job.spec, revision)
    if revision is not None and RevisionState(revision.state) in _PHASES:
        return Wait(_POLL_SECONDS, "ending the replica that was being started", cleaning=True)
    raise Conflict("the deployment was cancelled", hint="what served before goes on serving")


def _result(spec: DeploySpec, revision: Revision) -> DeployResult:
    assert revision.ready_at is not None, "it serves"
    return DeployResult(
        deployment=spec.deployment, revision=revision.number, replaced=revision.replaced, model=spec.model,
        switched=True, ready_seconds=(revision.ready_at - revision.created_at).total_seconds(),
    )  # fmt: skip


def _check(deployments: Deployments, check: Check) -> list[FieldProblem]:
    spec = check.parsed
    if not isinstance(spec, DeploySpec):
        return []
    problems = []
    try:
        find(deployments.engines, spec.engine).check(spec)
    except BurnishError as error:
        problems.append(FieldProblem(where=f"spec.{error.where}", message=error.message, hint=error.hint))
    return problems


def error_of(body: ErrorBody) -> BurnishError:
    """Return the typed error that was stored."""
    known = {error.code: error for error in all_errors() if error.__module__ == BurnishError.__module__}
    cls = known.get(body.code, JobFailed)
    return cls(body.message, hint=body.hint, where=body.where, problems=body.problems)
