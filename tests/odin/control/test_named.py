"""Policies and detectors by text: built in, a class of one's own, offered by an installed distribution."""

from __future__ import annotations

import copy
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from odin.control.detectors import DETECTORS, detector_names, make_detector
from odin.monitor.detectors import CusumDetector, ThresholdDetector
from odin.monitor.detectors.adwin import AdwinDetector
from odin.monitor.detectors.page_hinkley import PageHinkleyDetector
from odin.partitioner.policies import POLICIES, LlsPolicy, make_policy
from odin.partitioner.policies.registry import GivenPolicy, policy_names

POLICY_MODULE = """
    class Stay:
        name = "stay"

        def __init__(self, *, step: int = 1, gain: float = 1, careful: bool = False, note: str = "", seed=None):
            if step < 1:
                raise ValueError(f"step={step}: at least 1")
            self.step, self.gain, self.careful, self.note = step, gain, careful, note
            self.started = []

        def start(self, setting):
            self.started.append(setting)

        def decide(self, observation):
            return observation  # to see that it is asked

    class Exact(Stay):
        name = "mine:Exact"

    class Nameless(Stay):
        name = ""

    class Group:
        Inner = Stay

    class NoDecide:
        name = "half"
        start = None

    class TakesNothing(Stay):
        def decide(self):
            return None

    class Needs(Stay):
        def __init__(self, speed):
            super().__init__()

    ready = Stay()
    """

DETECTOR_MODULE = """
    import numpy as np
    from odin.monitor.detectors.streams import Streams

    class Deaf(Streams):
        def __init__(self, streams, *, noise: float = 0.1):
            super().__init__(streams)
            self.disturbed = np.zeros(streams, dtype=bool)
            self.level = np.zeros(streams)
            self.noise = np.full(streams, noise)

        def update(self, x):
            self._checked(x)

        def rebase(self):
            pass

    class OneForAll(Deaf):
        def __init__(self, streams):
            super().__init__(streams)
            self.level = np.zeros(1)

    class NoRebase(Deaf):
        rebase = property()

    class NotGivenStreams(Deaf):
        def __init__(self):
            super().__init__(2)
    """


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory that is not on the path, with modules in it that are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))


@pytest.fixture
def mine(folder):
    write(folder / "mine.py", POLICY_MODULE)
    write(folder / "ears.py", DETECTOR_MODULE)
    return folder


def install(site, name, entry_points):
    """What pip leaves of a distribution, as far as entry points go."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    write(info / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    write(info / "entry_points.txt", entry_points)


@pytest.fixture
def site(folder, monkeypatch):
    """An empty folder for distributions, on the path."""
    site = folder / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    return site


# --- classes of one's own --------------------------------------------------------------------------------------------


def test_a_class_of_the_working_directory_is_found(mine):
    policy = make_policy("mine:Stay")
    assert type(policy.policy).__module__ == "mine"
    assert policy.policy.step == 1
    assert type(make_policy("mine:Group.Inner").policy) is type(policy.policy)


def test_a_module_is_imported_once(mine):
    write(
        mine / "counted.py", "import builtins\nbuiltins.counted_imports = getattr(builtins, 'counted_imports', 0) + 1\n"
    )
    with (mine / "counted.py").open("a") as file:
        file.write("from mine import Stay\n")
    make_policy("counted:Stay")
    make_policy("counted:Stay:step=2")
    import builtins

    assert builtins.__dict__.pop("counted_imports") == 1


def test_installed_modules_are_not_shadowed_by_the_working_directory(mine):
    write(mine / "json.py", "raise RuntimeError('wrong one')")
    with pytest.raises(ValueError, match=r"module 'json' \(.*/json/__init__\.py\) has no 'Stay'"):
        make_policy("json:Stay")


def test_settings_are_read_as_what_the_defaults_are(mine):
    made = make_policy("mine:Stay:step=3, gain=2.5,careful=yes,note=a:b").policy
    assert (made.step, made.gain, made.careful, made.note) == (3, 2.5, True, "a:b")
    assert isinstance(make_policy("mine:Stay:gain=1e-3").policy.gain, float)  # float by its annotation


def test_what_is_shown_can_be_given_again(mine):
    text = "mine:Stay:step=2"
    policy = make_policy(f" {text} ")
    assert policy.name == text
    assert make_policy(policy.name).name == text
    assert isinstance(policy, GivenPolicy)
    policy.start("setting")
    assert policy.policy.started == ["setting"]
    assert policy.decide("seen") == "seen"
    assert (policy.step, hasattr(policy, "exploring")) == (2, False)  # as the policy itself
    assert copy.deepcopy(policy).policy.step == 2
    own = make_policy("mine:Exact")
    assert own.name == "mine:Exact"
    assert type(own).__name__ == "Exact"  # it calls itself so: the object itself


@pytest.mark.parametrize("name", POLICIES)
def test_built_in_policies_are_what_they_were(name):
    policy = make_policy(name)
    assert not isinstance(policy, GivenPolicy)
    assert make_policy(policy.name).name == policy.name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "stay",
            r"there is no policy 'stay'; choose one of relay, static, .*, or name a class of your own as module",
        ),
        ("stay:step=2", r"there is no policy 'stay'; choose one of relay, static"),
        ("mein:Stay", r"policy 'mein:Stay': there is no module 'mein' in .*; names are relay, static, lls"),
        ("mine.sub:Stay", r"there is no module 'mine.sub' in .*set PYTHONPATH$"),
        ("mine.py:Stay", r"there is no module 'mine.py' in "),
        ("./mine.py:Stay", r"'./mine.py' is not the name of a module; the file folder/file.py is called folder.file"),
        ("mine:Sty", r"module 'mine' \(.*/mine\.py\) has no 'Sty'; name a class of it as mine:Class"),
        ("mine:ready", r"policy 'mine:ready' is a Stay, not a class; name a class that makes a policy"),
        ("mine:NoDecide", r"has no decide; a policy has name, start, decide: see docs/extending\.md"),
        ("mine:TakesNothing", r"decide does not take what it will be given: too many positional"),
        ("mine:Nameless", r"is called ''; its name must be a text with something in it"),
        (
            "mine:Needs",
            r"missing a required argument: 'speed'; a policy is made from nothing, and from settings that ha",
        ),
        ("mine:Stay:seed=1", r"has no parameter 'seed'; it has step=1, gain=1.0, careful=False, note="),
        ("mine:Stay:step", r"'step' is not parameter=value; it has step=1"),
        ("mine:Stay:", r"'' is not parameter=value"),
        ("mine:Stay:step=1,step=2", r"sets 'step' twice"),
        ("mine:Stay:step=x", r"step is 'x'; write a whole number, such as 1"),
        ("mine:Stay:step=0", r"policy 'mine:Stay:step=0': step=0: at least 1"),
        ("odin:alpha", r"policy 'odin:alpha': 'alpha' is not parameter=value; it has alpha=10, trial=4"),
    ],
)
def test_what_is_wrong_is_said(mine, text, message):
    with pytest.raises(ValueError, match=message):
        make_policy(text)


def test_a_module_that_cannot_be_imported_is_told_with_its_cause(mine):
    write(mine / "hungry.py", "import scipy_of_the_future")
    write(mine / "broken.py", "1 / 0")
    write(mine / "mistyped.py", "def f(:")
    with pytest.raises(
        ValueError, match="module 'hungry' needs 'scipy_of_the_future', which is not installed; install"
    ):
        make_policy("hungry:Policy")
    with pytest.raises(
        ValueError, match=r"cannot be imported: ZeroDivisionError: division by zero \(.*broken\.py, line 1\)"
    ):
        make_policy("broken:Policy")
    with pytest.raises(ValueError, match="module 'mistyped' cannot be imported: SyntaxError"):
        make_policy("mistyped:Policy")


# --- detectors -------------------------------------------------------------------------------------------------------


def test_detectors_by_name():
    assert isinstance(make_detector("cusum", 3), CusumDetector)
    slow, quick = (make_detector(f"threshold:ratio={ratio}", 2) for ratio in (0.5, 0.1))
    assert isinstance(slow, ThresholdDetector)
    for detector in (slow, quick):
        detector.update(np.zeros(2))
        detector.update(np.log([1.0, 1.3]))
    assert slow.changed.tolist() == [False, False]
    assert quick.changed.tolist() == [False, True]
    assert detector_names()[: len(DETECTORS)] == DETECTORS == ("cusum", "threshold", "page-hinkley", "adwin")


def test_river_is_asked_for_only_when_it_is_needed():
    try:
        import river  # noqa: F401  # optional
    except ImportError:
        for name in ("adwin", "page-hinkley:threshold=2"):
            with pytest.raises(ValueError, match=rf"detector '{name}': .*pip install 'odin-pipeline\[compare\]'"):
                make_detector(name, 2)
    else:
        assert isinstance(make_detector("adwin", 2), AdwinDetector)
        assert isinstance(make_detector("page-hinkley:threshold=2", 2), PageHinkleyDetector)


def test_a_detector_of_ones_own(mine):
    assert make_detector("ears:Deaf:noise=0.3", 3).noise.tolist() == [0.3] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cusums", r"there is no detector 'cusums'; choose one of cusum, threshold, page-hinkley, adwin"),
        ("cusum:arl=10", r"detector 'cusum:arl=10': arl=10\.0: mean samples"),
        ("threshold:alpha=1", r"detector 'threshold:alpha=1' has no parameter 'alpha'; it has ratio=0\.2"),
        ("ears:OneForAll", r"level has shape \(1,\) for 2 streams; it is one value per stream"),
        ("ears:NoRebase", r"has no rebase; a detector has changed, disturbed, level, age, noise, update, rebase"),
        ("ears:NotGivenStreams", r"too many positional arguments; a detector is made from the number of streams, and"),
        ("mine:Stay", r"too many positional arguments"),
    ],
)
def test_what_is_wrong_with_a_detector_is_said(mine, text, message):
    with pytest.raises(ValueError, match=message):
        make_detector(text, 2)


# --- entry points ----------------------------------------------------------------------------------------------------


def test_installed_distributions_offer_policies_and_detectors(site):
    write(site / "roster" / "__init__.py", "")
    write(site / "roster" / "policies.py", POLICY_MODULE)
    write(site / "roster" / "detectors.py", DETECTOR_MODULE)
    install(
        site,
        "roster",
        "[odin.policies]\nstay = roster.policies:Stay\n\n[odin.detectors]\ndeaf = roster.detectors:Deaf\n",
    )
    assert policy_names() == (*POLICIES, "stay")
    assert detector_names() == (*DETECTORS, "deaf")
    policy = make_policy("stay:step=4")
    assert (policy.name, policy.policy.step) == ("stay:step=4", 4)
    assert type(make_policy("stay")).__name__ == "Stay"  # calls itself by the name it is offered under
    assert make_detector("deaf:noise=0.2", 2).noise.tolist() == [0.2, 0.2]
    with pytest.raises(ValueError, match=r"choose one of relay, static, .*, stay, or name"):
        make_policy("stya")
    with pytest.raises(ValueError, match="there is no policy 'deaf'"):
        make_policy("deaf")


def test_a_broken_offer_names_its_distribution_and_hides_no_other(site):
    write(site / "sound.py", POLICY_MODULE)
    install(
        site, "unsound-wares", "[odin.policies]\ngone = gone_module:Policy\nempty = sound:Missing\nmodule = sound\n"
    )
    install(site, "sound-wares", "[odin.policies]\nstay = sound:Stay\n")
    with pytest.raises(
        ValueError, match=r"'gone' is offered by unsound-wares 1\.0 as gone_module:Policy, but there is no"
    ):
        make_policy("gone")
    with pytest.raises(
        ValueError, match=r"by unsound-wares 1\.0 as sound:Missing, but module 'sound' .* has no 'Missing'"
    ):
        make_policy("empty")
    with pytest.raises(ValueError, match=r"by unsound-wares 1\.0 as sound, but 'sound' names no class"):
        make_policy("module")
    assert make_policy("stay").name == "stay"
    assert set(policy_names()) == {*POLICIES, "gone", "empty", "module", "stay"}


def test_two_offers_of_one_name_are_not_chosen_between(site):
    write(site / "sound.py", POLICY_MODULE)
    install(site, "first", "[odin.policies]\nstay = sound:Stay\n")
    install(site, "second", "[odin.policies]\nstay = sound:Exact\n")
    with pytest.raises(ValueError, match=r"offered by (first|second) 1\.0 and by .*; name the one you mean as sound:"):
        make_policy("stay")
    assert make_policy("sound:Stay").name == "sound:Stay"


def test_built_in_names_cannot_be_taken(site):
    write(site / "sound.py", POLICY_MODULE)
    install(site, "grabber", "[odin.policies]\nlls = sound:Stay\n")
    with pytest.warns(
        UserWarning, match=r"the policy 'lls' of grabber 1\.0 is hidden by the built-in one .* as sound:Sta"
    ):
        assert isinstance(make_policy("lls"), LlsPolicy)
    assert policy_names() == POLICIES


def test_metadata_that_cannot_be_read_hides_no_other(site):
    write(site / "sound.py", POLICY_MODULE)
    install(site, "garbled", "[odin.policies]\nthis is no entry point\n")
    install(site, "sound-wares", "[odin.policies]\nstay = sound:Stay\n")
    with pytest.warns(UserWarning, match=r"entry points of garbled 1\.0 cannot be read"):
        assert make_policy("odin:alpha=2").name == "odin:alpha=2"
    assert make_policy("stay").name == "stay"
