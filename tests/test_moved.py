"""Names of version 0.1.0: still there, with a warning that says where they are now."""

from __future__ import annotations

import inspect
import subprocess
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec

import pytest

import bluesky_ptychonn
from bluesky_ptychonn import moved

# What README, docs, docs/reference and profile_startup of 0.1.0 named by a module that is gone, or that renamed it.
NAMED = """
beamline.patterns: Field
recon.any_probe: for_probe
recon.archive: pack unpack
recon.calibrate: calibrated fit_table recalibrate
recon.checkpoint: load_model save_model
recon.engine: Reconstructor
recon.intake: Considered
recon.iterative: BATCH_SIZE DAMPING JOINT_DAMPING PYTHON_VARIABLE Solution SolverError SolverMissingError
recon.iterative: reconstruct_probe_and_object reconstruct_with_probe settled_epochs solver_python solver_version
recon.judging: Judgement judge
recon.labelled: LabelledScan MeasuredScan light_on
recon.labelling: check_overlap sampling_of solve
recon.learning: Candidate Learner
recon.learning_config: LearningConfig
recon.losses: AGREEMENT Overlap amplitude_phase_loss batch_loss disagreement gauge_free_loss label_free_loss merged
recon.losses: overlap poisson_deviance probe_weight
recon.measure: Judge measure_labelled measure_simulated measured_card
recon.metrics: RingCorrelation align fourier_ring_correlation phase_correlation phase_error phase_mae ssim
recon.network: DirectConfig LiftedConfig build_network network_config
recon.novelty: features novelty
recon.probe_tuning: ABERRATIONS TunedProbe aberrated pupil_aberrations tune_probe
recon.pseudo_label: PseudoLabel label
recon.refine: refine
recon.refinement: Refinement
recon.replay: Kept ReplayBuffer
recon.spacing: step_of thinned
recon.stitch: Mosaic MosaicImage
recon.supply: Mix
recon.synthetic: SyntheticConfig
recon.training: Progress TrainingConfig fine_tune
recon.training_config: TrainingConfig
recon.trust: frame_score frame_trust movement noise_floor patch_weight under_probe unexplained_fraction
recon.upstream: import_upstream
recon.verdict: Verdict judge
recon.watch: RunFigures Watch
stream.backfill: backfill unfinished
stream.client: PtychoReconstruction reconstructions
stream.decisions: Decision
stream.keys: Keys
stream.labels: PtychoLabel label labels read_label
stream.learner: CatalogLearner
stream.learner_config: LearnerConfig
stream.lessons: Lesson
stream.live: LiveReconstruction
stream.measured: Optic RunFrames measured_run
stream.progress: Pace Progress Status
stream.published: Published
stream.raw_runs: RawWriter Recovered raw_writer recover
stream.reconstruct: reconstruct
stream.registry: Registry
stream.server: CatalogServer connect serve_catalog
"""
OLD = [
    (module, name)
    for module, names in (line.split(": ") for line in NAMED.strip().splitlines())
    for name in names.split()
]


@pytest.mark.parametrize(("module", "name"), OLD, ids=[".".join(old) for old in OLD])
def test_an_old_name_is_found_and_says_where_it_is_now(module, name) -> None:
    namespace: dict = {}
    with pytest.warns(DeprecationWarning, match="the old name goes with the next version") as warned:
        exec(f"from bluesky_ptychonn.{module} import {name}", namespace)
    (message,) = {str(warning.message) for warning in warned}  # a package is asked twice, by Python
    old, place = message.split(";")[0].removesuffix(" now").split(" is ")
    assert old == f"bluesky_ptychonn.{module}.{name}"
    new_module, _, new_name = place.rpartition(".")
    assert namespace[name] is getattr(import_module(new_module), new_name)
    assert {warning.filename for warning in warned} == {"<string>"}  # whoever asked, not us


def test_every_old_module_and_renamed_name_is_tried_here() -> None:
    tried = {module for module, _ in OLD}
    assert tried == {*moved.MODULES, *moved.PACKAGES, "beamline.patterns"}
    everything = {f"{module}.{name}" for module, name in OLD}
    assert {*moved.NAMES} - everything <= {"recon.supply.Supply", "stream.lessons.Lessons"}


def test_what_the_face_calls_otherwise_is_still_there() -> None:
    with pytest.warns(DeprecationWarning, match=r"^bluesky_ptychonn\.Pace is bluesky_ptychonn\.Timing now;"):
        assert bluesky_ptychonn.Pace is bluesky_ptychonn.Timing
    assert "Pace" not in bluesky_ptychonn.__all__


def test_training_by_the_name_of_before() -> None:
    from bluesky_ptychonn.recon.training import fit

    with (
        pytest.warns(DeprecationWarning, match=r"recon\.training\.fit is bluesky_ptychonn\.fit now"),
        pytest.raises(TypeError, match="missing 2 required positional"),
    ):
        fit()


def test_training_by_the_name_of_before_shows_what_it_takes() -> None:
    from bluesky_ptychonn.recon.training import fit

    assert inspect.signature(fit) == inspect.signature(bluesky_ptychonn.fit)
    assert fit.__doc__ == bluesky_ptychonn.fit.__doc__


@pytest.mark.parametrize(
    ("module", "names"),
    [("stream.live", "LiveReconstruction"), ("stream.progress", "Pace Progress Status"), ("recon.metrics", "ssim")],
)
def test_everything_of_a_module_of_before_can_be_imported_at_once(module, names) -> None:
    namespace: dict = {}
    with pytest.warns(DeprecationWarning, match="the old name goes with the next version"):
        exec(f"from bluesky_ptychonn.{module} import *", namespace)
    assert set(names.split()) <= set(namespace)
    assert not {"np", "annotations", "Any", "Timing"} & set(namespace)


def test_what_never_was_is_not_there() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("bluesky_ptychonn.stream.nothing")
    with pytest.raises(AttributeError):
        _ = import_module("bluesky_ptychonn.stream").nothing
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = import_module("bluesky_ptychonn.stream.live").nothing
    for package in ("recon.training", "recon.learning", "beamline.patterns"):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            _ = import_module(f"bluesky_ptychonn.{package}").nothing


def test_asking_for_a_module_warns_of_nothing_and_asking_for_another_is_not_our_affair() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import_module("bluesky_ptychonn.stream.live")
    assert find_spec("streams_of_nobody") is None
    moved.install()
    finders = [type(finder).__module__ for finder in sys.meta_path]
    assert finders.count(moved.__name__) == 1


def test_the_package_itself_uses_no_old_name() -> None:
    """Every name of the face, in a process where an old name is an error."""
    code = (
        "import warnings; warnings.filterwarnings('error', '.*the old name goes.*'); import bluesky_ptychonn as p;"
        "[getattr(p, name) for name in p.__all__]; import sys;"
        "print(*[name for name in sys.modules if name.startswith('bluesky_ptychonn.stream')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
