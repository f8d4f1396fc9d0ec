"""Typed specs and results of every job kind, and the models stored inside artifacts."""

from burnish.core.specs.base import ArtifactKind, ArtifactRef, Estimate, Resources, Spec, digest_of
from burnish.core.specs.compression import CompressionResult, CompressionSpec
from burnish.core.specs.data import DatasetCard, DatasetFormat, SplitResult, SplitSpec
from burnish.core.specs.evaluation import EvaluationResult, EvaluationSpec, PairedDifference, ServedAs
from burnish.core.specs.fine_tuning import FineTuningResult, FineTuningSpec, ImportModelResult, ImportModelSpec
from burnish.core.specs.model import ModelCard
from burnish.core.specs.serving import DeployResult, DeploySpec, EngineName

__all__ = [
    "ArtifactKind", "ArtifactRef", "CompressionResult", "CompressionSpec", "DatasetCard", "DatasetFormat",
    "DeployResult", "DeploySpec", "EngineName", "Estimate", "EvaluationResult", "EvaluationSpec",
    "FineTuningResult", "FineTuningSpec", "ImportModelResult", "ImportModelSpec", "ModelCard",
    "PairedDifference", "Resources", "ServedAs", "Spec", "SplitResult", "SplitSpec", "digest_of",
]  # fmt: skip
