"""The life of a run: the same one goes on, another is refused; and the processes that share it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from rbctl.errors import InputError
from rbctl.metrics import rows
from rbctl.processes import World, launched, together, world
from rbctl.runs import Run, tuned, tuned_lora


@dataclass(frozen=True)
class Config:
    """Options of a stage."""

    rate: float = 0.1
    words: tuple[str, ...] = ("a", "b")
    name: str | None = None
    device: str = "cpu"
    resume: bool = True
    seed: int = 3


FREE = {"device", "resume"}


def begun(folder: Path, config: Config) -> Run:
    """A run with a checkpoint."""
    run = Run(folder, "stage", config, FREE, results=("result.bin",), left=("previews/*.png",))
    with run.claimed():
        run.check({"data": "0" * 64})
        run.begin({"data": "0" * 64})
        run.log(1, {"loss": 0.5})
        run.log(2, {"loss": 0.25})
    for name in ("checkpoints/step-000001.safetensors", "previews/one.png", "result.bin", "mine.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return run


def test_the_same_run_goes_on_and_another_is_refused_by_what_differs(tmp_path: Path) -> None:
    run = begun(tmp_path, Config())
    run.check({"data": "0" * 64})
    dataclasses.replace(run, config=Config(device="cuda")).check({"data": "0" * 64})
    for change, message in (
        (Config(rate=0.2), "rate 0.1, not 0.2"),
        (Config(words=("a",)), r"words \['a', 'b'\], not \['a'\]"),
        (Config(name="x"), "name None, not 'x'"),
    ):
        with pytest.raises(InputError, match=f"holds a run with {message}; choose another --output, or .*--no-resume"):
            dataclasses.replace(run, config=change).check({"data": "0" * 64})
    with pytest.raises(InputError, match="data '000000000000', not '111111111111'"):
        run.check({"data": "1" * 64})


def test_an_option_that_the_run_did_not_know_yet_was_as_its_default_is(tmp_path: Path) -> None:
    run = begun(tmp_path, Config())
    (tmp_path / "recipe.yaml").write_text("stage: {rate: 0.1}\n")
    run.check({})
    with pytest.raises(InputError, match="words"):
        dataclasses.replace(run, config=Config(words=("c",))).check({})


def test_results_that_no_run_wrote_are_refused(tmp_path: Path) -> None:
    (tmp_path / "result.bin").touch()
    with pytest.raises(InputError, match=r"holds a result.bin that no run here wrote; choose another --output"):
        Run(tmp_path, "stage", Config(), results=("result.bin",)).check({})


def test_no_resume_drops_what_the_run_before_left_and_nothing_else(tmp_path: Path) -> None:
    run = dataclasses.replace(begun(tmp_path, Config()), config=Config(rate=0.2, resume=False))
    run.check({})
    run.begin({})
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert [name for name in left if name != ".lock"] == ["mine.txt", "recipe.yaml", "run.json"]


def test_rows_after_the_checkpoint_are_cut(tmp_path: Path) -> None:
    run = begun(tmp_path, Config())
    run.cut(1)
    assert rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]


def test_a_further_process_writes_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, "stage", Config(), world=World(rank=1, size=2))
    with run.claimed():
        run.check({})
        run.begin({})
        run.log(1, {})
    assert not list(tmp_path.iterdir())


def test_items_are_divided_among_processes_each_to_one() -> None:
    parts = [World(rank, 3).part(range(8)) for rank in range(3)]
    assert parts == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_the_launcher_says_which_process_this_is() -> None:
    assert world({}) == World(0, 1, 0)
    assert world({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == World(5, 8, 1)
    assert world({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}) == World(2, 4, 0)
    assert world({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == World()  # no srun


def test_launchers_are_understood() -> None:
    variables = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert launched({**variables, "HOME": "/"}) == variables  # deepspeed and torchrun
    slurm = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "70001"}
    of_slurm = launched({**slurm, "SLURM_STEP_NODELIST": "node7"})
    assert (of_slurm["RANK"], of_slurm["LOCAL_RANK"], of_slurm["WORLD_SIZE"]) == ("9", "1", "16")
    assert (of_slurm["MASTER_ADDR"], of_slurm["MASTER_PORT"]) == ("node7", str(20000 + 70001 % 20000))
    assert launched({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"})["WORLD_SIZE"] == "1"  # no srun
    with pytest.raises(InputError, match="MASTER_PORT not; start with"):
        launched({key: value for key, value in variables.items() if key != "MASTER_PORT"})


def test_a_single_process_leaves_no_variables_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with together(even_alone=True) as alone:
        assert alone == World()
        assert os.environ["MASTER_PORT"]
    assert "MASTER_PORT" not in os.environ


TOGETHER = """
import os
from rbctl.processes import together
with together() as world:
    world.wait()
    assert world.gathered(world.rank) == [0, 1]
    assert world.anywhere(world.first) and not world.anywhere(False)
"""


@pytest.mark.slow
def test_processes_talk_to_each_other(tmp_path: Path) -> None:
    (tmp_path / "together.py").write_text(TOGETHER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, str(tmp_path / "together.py")], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_input_error_is_told_once_however_many_processes_meet_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rbctl"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command += ["finetune", "--relation", "hug", "--data", "nowhere", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(told) == 1, done.stderr
    assert f"traceback : {told[0]}" in done.stderr  # what torchrun says at the end names it too
    assert "rbctl/cli.py" not in done.stderr


def test_the_lora_of_a_relation_is_called_by_it_or_as_all_once_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tuned("hug", "mini")
    folder.mkdir(parents=True)
    (folder / "lora.safetensors").touch()
    assert tuned_lora("hug", "mini") == folder / "lora.safetensors"
    (folder / "hug.safetensors").touch()
    assert tuned_lora("hug", "mini") == folder / "hug.safetensors"
