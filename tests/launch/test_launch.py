"""Launchers say what they will run, run it, pass signals on and end with the status that says what to do next."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from tests.configs import one_stage
from tests.launch.stand_ins import LAUNCH, ROOT, StandIns, command, is_running, wait_until
from tests.study_runs import stage_metrics
from tll_jax.program import GOES_ON

SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
LONG = "time.sleep(600)"
SAVES_WHEN_TOLD = """
def save(number, frame):
    print("saved after", signal.Signals(number).name, flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
(calls.parent / f"ready-{os.getpid()}").touch()
print("ready", flush=True)
time.sleep(600)
"""
RANK = "rank = arguments[-1].removeprefix('--process_id=')\n"


@pytest.fixture
def stand_ins(tmp_path):
    stand_ins = StandIns(tmp_path)
    yield stand_ins
    stand_ins.end()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_launchers_pass_shellcheck(script):
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    outcome = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_launchers_explain_themselves(stand_ins, script):
    asked, misused = stand_ins.run(script.name, "--help"), stand_ins.run(script.name, "configs/emoji.py")
    assert asked.returncode == 0
    assert asked.stdout.startswith("usage: ")
    assert "--dry-run" in asked.stdout
    assert misused.returncode == 2
    assert misused.stderr == asked.stdout


MAIN = "python -m tll_jax.main --config=configs/emoji.py '--workdir=runs/my study'"
FLAG = "--config.split.seed=1"
DRY_RUNS = {
    "local": (["local.sh", "--dry-run"], [f"{MAIN} {FLAG}"]),
    "two processes": (
        ["local.sh", "--dry-run", "--processes", 2],
        [f"{MAIN} {FLAG} --coordinator=127.0.0.1:PORT --num_processes=2 --process_id={rank}" for rank in (0, 1)],
    ),
    "gpu": (["gpu.sh", "--dry-run"], [f"JAX_PLATFORMS=cuda,cpu {MAIN} {FLAG}"]),
    "slurm": (
        ["slurm.sbatch", "--dry-run"],
        [f"srun --kill-on-bad-exit=0 --wait=60 bash -c RANK rank {MAIN} --distributed {FLAG}"],
    ),
    "tpu": (
        ["tpu_vm.sh", "--dry-run", "pod", "us-west4-a"],
        [
            f"git -C {LAUNCH}/.. archive --output=ARCHIVE HEAD",
            "gcloud compute tpus tpu-vm scp ARCHIVE pod: --zone=us-west4-a --worker=all",
            "gcloud compute tpus tpu-vm ssh pod --zone=us-west4-a --worker=all "
            + shlex.quote(
                "--command=mkdir -p tll_jax && tar -xzf tll_jax.tar.gz -C tll_jax && exec tll_jax/launch/tpu_vm.sh "
                f"--on-worker configs/emoji.py runs/my\\ study {FLAG}"
            ),
        ],
    ),
}


@pytest.mark.parametrize(("launcher", "expected"), DRY_RUNS.values(), ids=DRY_RUNS)
def test_a_dry_run_prints_exactly_what_would_run_and_runs_nothing(stand_ins, launcher, expected):
    for program in ("python", "srun", "gcloud", "nvidia-smi"):
        stand_ins.add(program)
    script, *options = launcher
    outcome = stand_ins.run(script, *options, "configs/emoji.py", "runs/my study", FLAG)
    assert outcome.returncode == 0, outcome.stderr
    printed = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", outcome.stdout)
    printed = re.sub(r"[^ =]*/tll_jax\.tar\.gz ", "ARCHIVE ", printed)
    printed = re.sub(r"-c \$'.*?[^\\]'", "-c RANK", printed)
    assert [shlex.split(line) for line in printed.splitlines()] == [shlex.split(line) for line in expected]
    assert not list(stand_ins.records.iterdir())


def test_one_process_takes_the_place_of_the_launcher(stand_ins):
    stand_ins.add("python", "sys.exit(75)")
    process = stand_ins.start("local.sh", "a config.py", "runs/a", FLAG)
    assert process.wait() == GOES_ON
    (call,) = stand_ins.calls("python")
    assert call["arguments"] == ["-m", "tll_jax.main", "--config=a config.py", "--workdir=runs/a", FLAG]
    assert call["pid"] == process.pid


def test_several_processes_are_numbered_and_only_the_first_writes_unmarked_lines(stand_ins):
    stand_ins.add("python", RANK + "print('out', rank); print('err', rank, file=sys.stderr)")
    outcome = stand_ins.run("local.sh", "--processes", 3, "c", "w", JAX_NUM_CPU_DEVICES="2")
    assert outcome.returncode == 0
    assert outcome.stdout == "out 0\n"
    marked = [f"[process {rank}] {stream} {rank}" for rank in (1, 2) for stream in ("err", "out")]
    assert sorted(outcome.stderr.splitlines()) == sorted(["err 0", *marked])
    calls = stand_ins.calls("python")
    assert sorted(call["arguments"][-1] for call in calls) == [f"--process_id={rank}" for rank in range(3)]
    assert len({call["arguments"][-3] for call in calls}) == 1
    assert {call["arguments"][-2] for call in calls} == {"--num_processes=3"}
    assert {call["environment"]["JAX_NUM_CPU_DEVICES"] for call in calls} == {"2"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_process_once_and_saved_by_all_is_status_75(stand_ins, number):
    """Also the process that saves longer than another: a second signal would end it."""
    slowly = 'time.sleep(2 * (rank == "0")); sys.exit(75)'
    stand_ins.add("python", RANK + SAVES_WHEN_TOLD.replace("sys.exit(75)", slowly))
    process = stand_ins.start("local.sh", "--processes", 2, "c", "w")
    assert process.stdout.readline() == "ready\n"
    assert process.stderr.readline() == "[process 1] ready\n"
    process.send_signal(number)
    shown, marked = process.communicate(timeout=300)
    assert shown == f"saved after {number.name}\n"
    assert marked == f"[process 1] saved after {number.name}\n"
    assert process.returncode == GOES_ON


@pytest.mark.parametrize("kill", [os.kill, os.killpg])
def test_processes_save_and_stop_when_their_launcher_is_killed(stand_ins, kill):
    stand_ins.add("python", SAVES_WHEN_TOLD)
    process = stand_ins.start("local.sh", "--processes", 2, "c", "w")
    assert process.stdout.readline() == "ready\n"
    assert process.stderr.readline() == "[process 1] ready\n"
    kill(process.pid, signal.SIGKILL)
    shown, told = process.communicate(timeout=300)
    assert shown == "saved after SIGTERM\n"
    assert sorted(told.splitlines()) == [
        "[process 1] saved after SIGTERM",
        "launch/local.sh has been killed: its processes save and stop",
    ]
    wait_until(lambda: not any(is_running(call["pid"]) for call in stand_ins.calls("python")), "their end")


def test_processes_that_do_not_stop_are_killed_after_the_grace_when_their_launcher_is_killed(stand_ins):
    stand_ins.add("python", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\n" + LONG)
    process = stand_ins.start("local.sh", "--processes", 2, "--grace", 1, "c", "w")
    assert process.stdout.readline() == "deaf\n"
    calls = stand_ins.wait_for_calls("python", 2)
    process.kill()
    wait_until(lambda: not any(is_running(call["pid"]) for call in calls), "their end")


def test_a_terminals_ctrl_c_reaches_every_process_once(stand_ins):
    """A terminal signals the whole group in its foreground; a second signal would end a process that is saving."""
    stand_ins.add("python", SAVES_WHEN_TOLD.replace("sys.exit(75)", "time.sleep(2); sys.exit(75)"))
    process = stand_ins.start("local.sh", "--processes", 2, "c", "w")
    assert process.stdout.readline() == "ready\n"
    assert process.stderr.readline() == "[process 1] ready\n"
    os.killpg(process.pid, signal.SIGINT)
    shown, marked = process.communicate(timeout=300)
    assert shown == "saved after SIGINT\n"
    assert marked == "[process 1] saved after SIGINT\n"
    assert process.returncode == GOES_ON


def test_a_failed_process_takes_the_others_with_it_and_its_status_is_returned(stand_ins):
    fails = """
if rank == "1":
    while len(list(calls.parent.glob("ready-*"))) < 2:
        time.sleep(0.05)
    sys.exit(3)
"""
    stand_ins.add("python", RANK + fails + SAVES_WHEN_TOLD)
    outcome = stand_ins.run("local.sh", "--processes", 3, "c", "w")
    assert outcome.returncode == 3
    assert outcome.stdout == "ready\nsaved after SIGTERM\n"
    assert not any(is_running(call["pid"]) for call in stand_ins.calls("python"))


def test_a_process_that_does_not_stop_is_killed_after_the_grace(stand_ins):
    stand_ins.add("python", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + LONG)
    process = stand_ins.start("local.sh", "--processes", 2, "--grace", 1, "c", "w")
    calls = stand_ins.wait_for_calls("python", 2)
    (second,) = [call["pid"] for call in calls if call["arguments"][-1] == "--process_id=1"]
    os.kill(second, signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGKILL
    assert not any(is_running(call["pid"]) for call in calls)


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--processes", "two"], "not 'two'"), (["--grace", "0"], "not '0'"), (["--fast"], "no option --fast")],
)
def test_impossible_options_are_refused(stand_ins, options, message):
    outcome = stand_ins.run("local.sh", *options, "c", "w")
    assert outcome.returncode == 2
    assert message in outcome.stderr


def test_a_run_of_two_processes_ends_with_the_results_of_one(environment, one_stage_alone, tmp_path):
    # All of which results are made; explanations are the first process's alone.
    workdir, stages = tmp_path / "study", "--stages=pretrain,finetune,evaluate,report"
    done = subprocess.run(
        command("local.sh", "--processes", 2, one_stage.__file__, workdir, stages),
        env=environment | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Only the first process prints and writes files.
    assert done.stderr.count("report:") == done.stderr.count("evaluate pixels") == 1
    found, expected = (json.loads((one / "results.json").read_text()) for one in (workdir, one_stage_alone))
    for part in ("rows", "comparisons", "significance", "data", "protocol"):
        assert found[part] == expected[part]
    assert stage_metrics(workdir) == stage_metrics(one_stage_alone)


def test_gpus_that_are_not_there_are_said_so(stand_ins):
    stand_ins.add("nvidia-smi", "sys.exit(9)")
    stand_ins.add("python")
    outcome = stand_ins.run("gpu.sh", "c", "w")
    assert outcome.returncode == 1
    assert "nvidia-smi finds no GPU" in outcome.stderr
    assert not stand_ins.calls("python")


def test_gpus_that_jax_does_not_see_are_said_so_with_the_mend(stand_ins):
    stand_ins.add("nvidia-smi", "print('GPU 0: H100')")
    outcome = stand_ins.run(
        "gpu.sh", "c", "w", PATH=f"{stand_ins.folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    assert outcome.returncode == 1
    assert "JAX sees none of them" in outcome.stderr
    assert "GPU 0: H100" in outcome.stderr
    assert "pip install -e '.[cuda13]' for driver 580 or newer" in outcome.stderr


def test_all_gpus_serve_one_process_that_does_not_fall_back_to_the_cpu(stand_ins):
    stand_ins.add("nvidia-smi", "print('GPU 0: H100\\nGPU 1: H100')")
    stand_ins.add("python", "print(2)")
    outcome = stand_ins.run("gpu.sh", "c", "w", FLAG)
    assert outcome.returncode == 0
    assert "JAX sees 2 GPU(s)" in outcome.stderr
    asked, ran = stand_ins.calls("python")
    assert asked["arguments"][0] == "-c"
    assert ran["arguments"] == ["-m", "tll_jax.main", "--config=c", "--workdir=w", FLAG]
    assert ran["environment"]["JAX_PLATFORMS"] == "cuda,cpu"
    assert "XLA_PYTHON_CLIENT_PREALLOCATE" not in ran["environment"]


SRUN = """
numbers = range({processes})
running = [subprocess.Popen(arguments[2:], env=os.environ | {{"SLURM_PROCID": str(number)}}) for number in numbers]
def pass_on(number, frame):
    for process in running:
        process.send_signal(number)
signal.signal(signal.SIGTERM, pass_on)
(calls.parent / "srun-ready").touch()
statuses = [process.wait() for process in running]
# As srun does; a process that a signal ended counts as a shell would say.
sys.exit(max(status if status >= 0 else 128 - status for status in statuses))
"""


@pytest.mark.parametrize(
    ("statuses", "status", "is_queued_again"),
    [
        ([0, 0], 0, False),
        ([1, 75, 75], 101, False),
        ([75, 75, 2], 102, False),
        ([0, 75], GOES_ON, True),
        ([75, 75], GOES_ON, True),
        ([75, -9], 137, False),
        ([139, 75], 139, False),
    ],
)
def test_a_slurm_job_is_queued_again_only_where_all_were_stopped_and_have_saved(
    stand_ins, statuses, status, is_queued_again
):
    stand_ins.add("srun", SRUN.format(processes=len(statuses)))
    ends = f"status = {statuses}[int(os.environ['SLURM_PROCID'])]\n"
    stand_ins.add("python", ends + "os.kill(os.getpid(), -status) if status < 0 else sys.exit(status)")
    stand_ins.add("scontrol")
    outcome = stand_ins.run("slurm.sbatch", "c", "w", FLAG, SLURM_JOB_ID="42")
    assert outcome.returncode == status
    for call in stand_ins.calls("python"):
        assert call["arguments"] == [*shlex.split("-m tll_jax.main --config=c --workdir=w --distributed"), FLAG]
    assert [call["arguments"] for call in stand_ins.calls("scontrol")] == [["requeue", "42"]] * is_queued_again


def test_a_signal_of_slurm_to_the_first_process_of_each_task_reaches_the_study(stand_ins):
    stand_ins.add("srun", SRUN.format(processes=2))
    # Of two signals, one may come while the other is being passed on.
    stand_ins.add("python", SAVES_WHEN_TOLD.replace("sys.exit(75)", "time.sleep(0.5); sys.exit(75)"))
    stand_ins.add("scontrol")
    process = stand_ins.start("slurm.sbatch", "c", "w", SLURM_JOB_ID="42")
    # Two processes write to one pipe, and may do so piece by piece.
    assert sorted(process.stdout.read(12)) == sorted("ready\n" * 2)
    (srun,) = stand_ins.calls("srun")
    os.kill(srun["pid"], signal.SIGTERM)
    shown, _ = process.communicate(timeout=300)
    assert sorted(shown) == sorted("saved after SIGTERM\n" * 2)
    assert process.returncode == GOES_ON
    assert [call["arguments"] for call in stand_ins.calls("scontrol")] == [["requeue", "42"]]


def test_a_slurm_job_that_was_cancelled_is_not_queued_again(stand_ins):
    goes_on = stand_ins.folder / "goes on"
    stand_ins.add("srun", f"while not pathlib.Path({str(goes_on)!r}).exists(): time.sleep(0.05)\nsys.exit(75)")
    stand_ins.add("scontrol")
    process = stand_ins.start("slurm.sbatch", "c", "w", SLURM_JOB_ID="42")
    stand_ins.wait_for_calls("srun", 1)
    process.terminate()
    goes_on.touch()
    process.communicate(timeout=300)
    assert process.returncode == GOES_ON
    assert not stand_ins.calls("scontrol")


def test_slurm_reads_all_options_and_signals_the_processes_before_the_limit():
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines[:first_command] if "#SBATCH" in line
    )
    assert "#SBATCH" not in "\n".join(lines[first_command:])
    # Without the prefix B: the signal goes to the processes and not to the script.
    assert options["signal"] == "TERM@120"
    assert options["requeue"] == ""
    assert options["ntasks-per-node"] == options["gpus-per-node"]


GCLOUD = """
workers = sorted(pathlib.Path({home!r}).glob("worker*"))
if arguments[3] == "scp":
    for worker in workers:
        (worker / "tll_jax.tar.gz").write_bytes(pathlib.Path(arguments[4]).read_bytes())
else:
    (remote,) = [argument.removeprefix("--command=") for argument in arguments if argument.startswith("--command=")]
    sys.exit(max(subprocess.run(["bash", "-c", remote], cwd=worker).returncode for worker in workers))
"""
UV = """
if arguments[:3] == ["-m", "uv", "venv"]:
    os.makedirs(".venv/bin", exist_ok=True)
    program = pathlib.Path(".venv/bin/python")
    program.write_text(f"#!{sys.executable}\\nimport sys\\nopen('ran', 'a').write(repr(sys.argv[1:]))\\nsys.exit(75)")
    program.chmod(0o755)
"""


def test_every_tpu_worker_gets_the_commit_installs_it_and_runs_the_same_command(stand_ins, tmp_path):
    for worker in ("worker0", "worker1"):
        (tmp_path / worker).mkdir()
    stand_ins.add("gcloud", GCLOUD.format(home=str(tmp_path)))
    stand_ins.add("python3", UV)
    outcome = stand_ins.run("tpu_vm.sh", "pod", "us-west4-a", "configs/emoji.py", "/mnt/my runs", "--config.name='a b'")
    assert outcome.returncode == GOES_ON, outcome.stderr
    for worker in ("worker0", "worker1"):
        checkout = tmp_path / worker / "tll_jax"
        assert (checkout / "configs" / "emoji.py").exists()
        assert eval((checkout / "ran").read_text()) == [
            "-m",
            "tll_jax.main",
            "--config=configs/emoji.py",
            "--workdir=/mnt/my runs",
            "--distributed",
            "--config.name='a b'",
        ]
    installs = [
        call["arguments"]
        for call in stand_ins.calls("python3")
        if "install" in call["arguments"] and "--editable" in call["arguments"]
    ]
    assert installs == [["-m", "uv", "pip", "install", "--quiet", "--editable", ".[tpu,faces,surf,weights]"]] * 2


def test_a_tpu_worker_first_stops_a_run_that_outlived_its_connection(stand_ins, tmp_path):
    (tmp_path / "launch").mkdir()
    shutil.copy(LAUNCH / "tpu_vm.sh", tmp_path / "launch")
    stand_ins.add("python3", UV)
    stand_ins.add("earlier", SAVES_WHEN_TOLD)
    earlier = subprocess.Popen([stand_ins.folder / "earlier", "tll_jax.main"], stdout=subprocess.PIPE, text=True)
    assert earlier.stdout.readline() == "ready\n"
    (tmp_path / "run.pid").write_text(f"{earlier.pid}\n")
    worker = subprocess.Popen(
        ["bash", tmp_path / "launch" / "tpu_vm.sh", "--on-worker", "c", "w"], env=stand_ins.environment()
    )
    assert earlier.communicate(timeout=300)[0] == "saved after SIGTERM\n"
    assert worker.wait(timeout=300) == GOES_ON
    assert earlier.returncode == GOES_ON
    assert int((tmp_path / "run.pid").read_text()) == worker.pid


@pytest.fixture
def jobset():
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def test_the_jobset_is_what_the_schema_of_jobsets_and_of_pods_allows(jobset):
    # What the schema does not know is dropped on the way, what it knows of another type is refused.
    assert JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset


def reason_of_failure(job, exit_codes):
    """Why Kubernetes says that a Job failed: the rules of its podFailurePolicy go before its backoffLimit."""
    for rule in job["podFailurePolicy"]["rules"]:
        asked = rule["onExitCodes"]
        assert asked["operator"] in ("In", "NotIn")
        if rule["action"] == "FailJob" and any(
            (code in asked["values"]) == (asked["operator"] == "In") for code in exit_codes if code != 0
        ):
            return "PodFailurePolicy"
    return "BackoffLimitExceeded" if sum(code != 0 for code in exit_codes) > job["backoffLimit"] else None


@pytest.mark.parametrize(
    ("exit_codes", "is_restarted_without_counting"),
    [
        ([75, 75, 75, 75], True),
        ([0, 75, 75, 75], True),
        ([1, 75, 75, 75], False),
        ([75, 75, 75, 1], False),
        ([137, 75, 75, 75], False),
        ([1], False),
    ],
)
def test_only_an_exit_with_75_by_all_restarts_the_jobset_without_counting(
    jobset, exit_codes, is_restarted_without_counting
):
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert all(rule["onExitCodes"]["containerName"] == container["name"] for rule in job["podFailurePolicy"]["rules"])
    # The reasons that a Job fails with, and the action of that name: jobset.sigs.k8s.io/docs.
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    matches = reason_of_failure(job, exit_codes) in rule["onJobFailureReasons"]
    assert matches == is_restarted_without_counting
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    # Kubernetes allows a podFailurePolicy only where pods are not restarted in place.
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_the_jobset_has_a_process_for_every_host_of_its_slice(jobset):
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert job["parallelism"] == job["completions"] == rows * columns / chips
    assert "--distributed" in pod["containers"][0]["command"]
