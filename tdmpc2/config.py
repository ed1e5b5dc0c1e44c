"""Every setting of a run, and how settings are read from `key=value` words and from files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from tdmpc2.errors import UserError, require, unknown_name
from tdmpc2.own_tasks import load_tasks_file
from tdmpc2.spec import MODEL_SIZES, AgentSpec, Architecture, ObsKind
from tdmpc2.tasks import expand_tasks, file_name, get_task


def _whole(value: Any) -> Any:
    """Let `1e6` and `7_000_000` stand for whole numbers, as people write them."""
    if isinstance(value, str):
        text = value.strip().replace("_", "")
        try:
            number = float(text)
        except ValueError:
            return value
        return int(number) if number.is_integer() else value
    return value


def _or_none(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() in ("none", "null", "") else value


Count = Annotated[int, BeforeValidator(_whole), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Above0 = Annotated[Number, Field(gt=0)]
Weight = Annotated[Number, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1)]
Unset = BeforeValidator(_or_none)
TasksFile = Annotated[str | None, AfterValidator(lambda path: path and str(Path(path).resolve())), Unset]
Precision = Literal["auto", "float32", "tf32", "bfloat16"]
CompileMode = Literal["auto", "none", "kernels", "full"]


def _compile_mode(value: Any) -> Any:
    """Let `true` and `false` stand for modes, as TD-MPC2's users type them."""
    return {"true": "full", "false": "none"}.get(str(value).strip().lower(), value)


Compile = Annotated[CompileMode, BeforeValidator(_compile_mode)]

PAPER_OFFLINE_UPDATES = 10_000_000
"""The paper's budget of multi-task training, in updates."""

_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class Config:
    """Every setting of a training run. Defaults are the paper's; names are those TD-MPC2's users know."""

    # --- what is learned
    task: str
    """A task, a task set (mt30, mt80, ...), or a comma-separated list of tasks. gym:ID: Gymnasium's ID."""
    tasks_file: TasksFile = None
    """Python file that registers tasks of your own. Its code is run, in every process that trains them."""
    obs: ObsKind = "state"
    """Observation: `state` or `rgb` (64 x 64 pixels, three frames)."""
    episodic: bool = False
    """Whether episodes can end by termination, which the model then predicts."""
    steps: Annotated[Positive | None, Unset] = None
    """Budget in agent steps (one decision each); with `data`, in updates. Default: the paper's. Not with env_steps."""
    env_steps: Annotated[Positive | None, Unset] = None
    """Budget in environment steps (agent steps x action repeat), the unit of published curves. Not with `data`."""
    data: Annotated[str | None, Unset] = None
    """Learn offline from this data set: its folder, or its name (of results_dir/[exp_name/]datasets/NAME)."""
    task_weights: str = "transitions"
    """How likely each task of the data is in a batch: `transitions` (all transitions alike), `tasks` (all tasks alike),
    or weights as in `walker-walk:2,cup-spin:0.5`, the others' being 1."""
    checkpoint: Annotated[str | None, Unset] = None
    """Finetune the multi-task agent of this run's folder, or of this checkpoint of the reference implementation."""
    checkpoint_tasks: Annotated[str | None, Unset] = None
    """Tasks of a reference implementation's `checkpoint`, in their order; such a file does not name them."""
    embedding_from: str = "nearest"
    """Finetuning: the embedding to start from, that of a TASK, the `mean` of all, `zero`, or `nearest`: the task's
    own where the checkpoint has it, else that of a task of the same embodiment, else of the same objective."""
    seed: Annotated[Count, Field(lt=2**31)] = 1
    """Seed of everything random in the run."""

    # --- model
    model_size: Annotated[int, BeforeValidator(_whole)] = 5
    """Model size: 1, 5, 19, 48 or 317, roughly the millions of parameters."""
    enc_dim: Annotated[Positive | None, Unset] = None
    """Width of the encoder's hidden layers. Default: from model_size."""
    mlp_dim: Annotated[Positive | None, Unset] = None
    """Width of all other hidden layers. Default: from model_size."""
    latent_dim: Annotated[Positive | None, Unset] = None
    """Length of the latent state, a multiple of simnorm_dim. Default: from model_size (512 for rgb)."""
    num_enc_layers: Annotated[Positive | None, Unset] = None
    """Layers of the encoder. Default: from model_size."""
    num_q: Annotated[Annotated[int, Field(ge=2)] | None, Unset] = None
    """Q-functions in the ensemble, at least 2. Default: from model_size."""
    task_dim: Annotated[Positive | None, Unset] = None
    """Length of the task embedding (multi-task only). Default: as in the released checkpoints."""
    num_channels: Positive = 32
    """Channels of the pixel encoder's convolutions."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Dropout on the first layer of the Q-functions."""
    simnorm_dim: Positive = 8
    """Size of the groups that SimNorm normalises."""
    num_bins: Annotated[int, Field(ge=2)] = 101
    """Bins of the two-hot regression of rewards and values."""
    vmin: Number = -10.0
    """Lowest bin, in symlog space."""
    vmax: Number = 10.0
    """Highest bin, in symlog space."""
    log_std_min: Number = -10.0
    """Lowest log standard deviation of the policy prior."""
    log_std_max: Number = 2.0
    """Highest log standard deviation of the policy prior."""

    # --- learning
    batch_size: Annotated[Positive | None, Unset] = None
    """Sequences in a batch. Default: 256 online, 1024 with `data`."""
    horizon: Positive = 3
    """Steps the model is unrolled for, in learning and planning."""
    lr: Above0 = 3e-4
    """Learning rate."""
    enc_lr_scale: Weight = 0.3
    """Factor on the encoder's learning rate."""
    grad_clip_norm: Above0 = 20.0
    """Largest global norm of the gradients."""
    tau: Rate = 0.01
    """Rate of the target Q-functions' and the running scale's moving averages."""
    rho: Rate = 0.5
    """Weight of step t of the unrolled model is rho ** t."""
    consistency_coef: Weight = 20.0
    """Weight of the latent consistency loss."""
    reward_coef: Weight = 0.1
    """Weight of the reward loss."""
    value_coef: Weight = 0.1
    """Weight of the value loss."""
    termination_coef: Weight = 1.0
    """Weight of the termination loss (episodic tasks)."""
    entropy_coef: Weight = 1e-4
    """Weight of the policy prior's entropy."""
    discount_denom: Annotated[Number, Field(gt=1)] = 5.0
    """Discount = clip((T/denom - 1) / (T/denom), discount_min, discount_max) for episodes of T agent steps."""
    discount_min: Rate = 0.95
    """Smallest discount."""
    discount_max: Rate = 0.995
    """Largest discount."""

    # --- planning
    mpc: bool = True
    """Plan with MPPI; false acts with the policy prior alone."""
    iterations: Positive = 6
    """Iterations of MPPI (two more where actions have 20 or more dims)."""
    num_samples: Positive = 512
    """Action sequences evaluated in an iteration."""
    num_elites: Positive = 64
    """Best sequences the next distribution is fitted to."""
    num_pi_trajs: Count = 24
    """Sequences, among num_samples, that the policy prior rolls out."""
    min_std: Above0 = 0.05
    """Smallest standard deviation of the planner's distribution."""
    max_std: Above0 = 2.0
    """Largest, and first, standard deviation of the planner's distribution."""
    temperature: Above0 = 0.5
    """How strongly better elites weigh more."""

    # --- acting and remembering
    num_envs: Positive = 1
    """Training environments stepped side by side; updates per agent step stay the same."""
    seed_steps: Annotated[Positive | None, Unset] = None
    """Agent steps at random before learning starts. Default: max(1000, 5 x episode length)."""
    buffer_size: Positive = 1_000_000
    """Rows of replay that are kept and sampled."""

    # --- evaluation and records
    eval_freq: Positive = 50_000
    """Agent steps between evaluations; with `data`, updates."""
    eval_episodes: Positive = 10
    """Episodes of an evaluation for each task, acted side by side."""
    checkpoint_freq: Positive = 10_000
    """Agent steps between checkpoints; with `data`, updates."""
    wandb: bool = False
    """Log to Weights & Biases as well (needs the package and `wandb login`)."""
    wandb_project: str = "tdmpc2"
    """Weights & Biases project."""
    wandb_entity: Annotated[str | None, Unset] = None
    """Weights & Biases user or team."""
    results_dir: str = "results"
    """Folder of all results."""
    exp_name: str = "default"
    """Experiment: the run's folder is results_dir/exp_name/runs/RUN."""
    label: str = ""
    """Added to the run's name, to tell variants of one task, size and seed apart."""

    # --- where it runs
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    threads: Annotated[Positive | None, Unset] = None
    """CPU threads of the run. Default: all cores."""
    accumulate: Positive = 1
    """Parts of a batch that are computed one after another, their gradients added up: less memory, the same update."""
    recompute: bool = False
    """Compute the hidden layers again for the backward pass instead of keeping them: less memory, the same update."""
    optimizer_state: Literal["float32", "bfloat16"] = "float32"
    """How Adam's moments are kept. bfloat16 halves their memory; rounding is at random, so that none stands still."""
    precision: Precision = "auto"
    """Matrix products: `float32`, `tf32` (GPUs), `bfloat16` (parameters, losses and statistics stay float32), or
    `auto`; `tdmpc2 info` says what that is here."""
    compile: Compile = "auto"
    """`none`, `kernels` (fused ones for the CPU), `full` (torch.compile, on a GPU replayed as CUDA graphs), or `auto`;
    `tdmpc2 info` says what that is here. `true` and `false` are read as `full` and `none`."""

    def __post_init__(self) -> None:
        expand_tasks(self.task, where="task")
        if self.model_size not in MODEL_SIZES:
            near = min(MODEL_SIZES, key=lambda size: abs(size - self.model_size))
            valid = ", ".join(map(str, MODEL_SIZES))
            raise UserError(f"model_size: no size {self.model_size}; nearest is {near} (valid: {valid})")
        if self.steps is not None and self.env_steps is not None:
            raise UserError("steps and env_steps: give one of them (env_steps = steps x action repeat)")
        require(self.vmin < self.vmax, "vmin must be below vmax")
        require(self.min_std <= self.max_std, "min_std must not be above max_std")
        require(self.log_std_min < self.log_std_max, "log_std_min must be below log_std_max")
        require(self.discount_min <= self.discount_max, "discount_min must not be above discount_max")
        require(self.num_elites <= self.num_samples, "num_elites must not be above num_samples")
        require(self.num_pi_trajs <= self.num_samples, "num_pi_trajs must not be above num_samples")
        for field in ("exp_name", "label"):
            text = getattr(self, field)
            require(
                all(c.isalnum() or c in "-_." for c in text) and not text.startswith("."),
                f"{field} names a folder: letters, digits, '-', '_' and '.' only, not {text!r}",
            )
        require(self.exp_name != "", "exp_name must not be empty")
        self._check_kind()

    def _check_kind(self) -> None:
        """Refuse settings that do nothing in a run of this kind."""
        if self.data is not None:
            require(self.env_steps is None, "env_steps: offline training takes none; give its updates by steps=")
            require(self.obs == "state", "obs: data sets are of states; pixels cannot be learned offline")
            self._refuse("seed_steps num_envs buffer_size checkpoint", "data")
        else:
            self._refuse("task_weights", "data", without=True)
        if self.checkpoint is not None:
            require(len(self.tasks) == 1, f"task: finetuning takes one task, not the {len(self.tasks)} of {self.task}")
        else:
            self._refuse("checkpoint_tasks embedding_from", "checkpoint", without=True)

    def _refuse(self, names: str, other: str, without: bool = False) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in names.split():
            unused = getattr(self, name) == defaults[name]
            require(unused, f"{name}: has no meaning {'without' if without else 'with'} {other}=")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, task sets expanded."""
        return expand_tasks(self.task)

    @property
    def offline(self) -> bool:
        """Whether the run learns from a data set alone."""
        return self.data is not None

    @property
    def sequences(self) -> int:
        """Sequences in a batch: `batch_size`, or its default."""
        if self.batch_size is not None:
            return self.batch_size
        return 1024 if self.offline or len(self.tasks) > 1 else 256

    @property
    def total_updates(self) -> int:
        """Updates of the whole run: those asked for offline; one for each agent step online."""
        if not self.offline:
            return self.agent_steps
        return PAPER_OFFLINE_UPDATES if self.steps is None else self.steps

    @property
    def agent_steps(self) -> int:
        """Budget in agent steps, whichever way it was given; the paper's budget where it was not; 0 offline."""
        if self.offline:
            return 0
        task = get_task(self.tasks[0])
        if self.steps is not None:
            return self.steps
        env_steps = task.paper_env_steps if self.env_steps is None else self.env_steps
        return max(1, env_steps // task.action_repeat)

    @property
    def run_name(self) -> str:
        """Name of the run's folder, e.g. `walker-walk-5M-seed1`."""
        parts = [
            file_name(self._tasks_in_short()),
            "rgb" if self.obs == "rgb" else "",
            f"{self.model_size}M",
            "finetuned" if self.checkpoint else "",
        ]
        return "-".join([part for part in (*parts, self.label) if part] + [f"seed{self.seed}"])

    def _tasks_in_short(self) -> str:
        names = [name.strip() for name in self.task.split(",")]
        if len(names) <= 3:
            return "+".join(names)
        digest = hashlib.sha256(",".join(names).encode()).hexdigest()[:6]  # a folder's name is short
        return f"{len(self.tasks)}tasks-{digest}"

    def identity(self) -> dict[str, Any]:
        """The settings that decide the run's results: all but where it runs and is recorded."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in NOT_IDENTITY}

    def digest(self) -> str:
        """A short hash of `identity`, the same in every process."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


NOT_IDENTITY = frozenset(
    "wandb wandb_project wandb_entity results_dir exp_name label device threads checkpoint_freq compile accumulate "
    "recompute tasks_file".split()
)
"""Settings that leave a run's results as they are. (What matters of own tasks, the folder keeps and compares.)"""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class EvaluateConfig:
    """Settings of `tdmpc2 evaluate`."""

    run: Annotated[str | None, Unset] = None
    """Folder of the run; the outcome is added to its evaluations.csv. This or `checkpoint`."""
    checkpoint: Annotated[str | None, Unset] = None
    """Checkpoint file, of this project or the reference implementation, or hf://OWNER/REPO/PATH. This or `run`."""
    task: Annotated[str | None, Unset] = None
    """Tasks that the reference implementation's checkpoint was trained on, e.g. mt80; it does not name them itself."""
    tasks_file: TasksFile = None
    """Python file that registers tasks of your own, which the agent learned; its code is run."""
    only: Annotated[str | None, Unset] = None
    """Which of the agent's tasks to evaluate: a task, a list, or a task set. Default: all."""
    model_size: Annotated[int | None, BeforeValidator(_whole), Unset] = None
    """What the checkpoint's model size must be. Default: whatever it is."""
    output: Annotated[str | None, Unset] = None
    """CSV file for the outcome, with `checkpoint`; it must not be there yet."""
    episodes: Positive = 10
    """Episodes for each task, acted side by side."""
    seed: Count = 1
    """Seed of the evaluation's environments and planner."""
    mpc: bool = True
    """Plan with MPPI; false acts with the policy prior alone."""
    video: bool = False
    """Write an MP4 of each task's first episode into `videos` in the run's folder, or beside `output`."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    threads: Annotated[Positive | None, Unset] = None
    """CPU threads. Default: all cores."""
    precision: Precision = "auto"
    """Matrix products: `float32`, `tf32` (GPUs) or `bfloat16`; `auto`: as the run's settings say."""
    compile: Compile = "auto"
    """`none`, `kernels` (CPU) or `full` (torch.compile); `auto`: as the run's settings say."""

    def __post_init__(self) -> None:
        _check_source(self.run, self.checkpoint, self.task)
        require(self.run is None or self.output is None, "output: has no meaning with run=, whose folder keeps it")
        unkept = self.video and self.run is None and self.output is None
        require(not unkept, "video: with checkpoint= it needs output=FILE.csv; the film is written beside it")


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class EmbeddingsConfig:
    """Settings of `tdmpc2 embeddings`."""

    run: Annotated[str | None, Unset] = None
    """Folder of the run. This or `checkpoint`."""
    checkpoint: Annotated[str | None, Unset] = None
    """Checkpoint file, of this project or the reference implementation, or hf://OWNER/REPO/PATH. This or `run`."""
    task: Annotated[str | None, Unset] = None
    """Tasks that the reference implementation's checkpoint was trained on, e.g. mt80; it does not name them itself."""
    output: Annotated[str | None, Unset] = None
    """CSV file to write; outside the run's folder it must not be there yet. Default: embeddings.csv in that folder."""

    def __post_init__(self) -> None:
        _check_source(self.run, self.checkpoint, self.task)
        placed = self.run is not None or self.output is not None
        require(placed, "output: with checkpoint= it is needed, e.g. output=embeddings.csv")


def _check_source(run: str | None, checkpoint: str | None, task: str | None) -> None:
    require((run is None) != (checkpoint is None), "run: give run=FOLDER or checkpoint=FILE, one of them")
    require(run is None or task is None, "task: has no meaning with run=, which names its tasks itself")
    if task is not None:
        expand_tasks(task, where="task")


Settings = TypeVar("Settings")


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_SETTINGS)
class ExportConfig:
    """Settings of `tdmpc2 export-reference`."""

    run: str
    """Folder of the run."""
    output: str
    """File to write; it must not be there yet."""


def parse_settings(cls: Callable[..., Settings], words: Iterable[str]) -> Settings:
    """Settings from `key=value` words, as typed on the command line.

    Args:
        cls: `Config` or another settings dataclass of this module.
        words: e.g. `["task=dog-run", "steps=7_000_000"]`.

    Raises:
        UserError: a word without `=`, an unknown or repeated key, a value of the wrong type or range.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"{word!r} is not of the form key=value")
        if key in values:
            raise UserError(f"{key} is given twice")
        values[key] = value
    if values.get("tasks_file") and hasattr(cls, "tasks_file"):
        load_tasks_file(values["tasks_file"])  # here a person names it; other settings come from files and run no code
    return make_settings(cls, values)


def make_settings(cls: Callable[..., Settings], values: Mapping[str, Any], where: str = "") -> Settings:
    """Settings from a mapping, every fault reported as a `UserError` that names the field.

    Args:
        cls: `Config` or another settings dataclass of this module.
        values: values by field name; strings are converted to the field's type.
        where: the file they were read from, for the message.

    Raises:
        UserError: an unknown key (with the nearest valid one), a missing one, a wrong type or range.
    """
    prefix = f"{where}: " if where else ""
    fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]  # a dataclass, by contract
    for key in values:
        if key not in fields:
            raise unknown_name("setting", str(key), fields, where)
    try:
        return cls(**values)
    except pydantic.ValidationError as error:
        faults = []
        for fault in error.errors():
            field = ".".join(str(part) for part in fault["loc"][:1])
            given = "" if fault["type"] == "missing" else f" (given: {fault['input']!r})"
            faults.append(f"{field}: {fault['msg'].lower()}{given}")
        raise UserError(prefix + "; ".join(dict.fromkeys(faults))) from None
    except UserError as error:
        raise UserError(f"{prefix}{error}") from None


def architecture(config: Config, spec: AgentSpec) -> Architecture:
    """The model's widths and depths: the size's, as the task set changes them, as the config overrides them.

    The released mt30 checkpoints differ from the table of sizes: task embeddings of 64 at sizes 5, 19 and 48, and a
    latent state of 512 at size 19. A pixel encoder's latent length follows from its convolutions.
    """
    size = dataclasses.asdict(MODEL_SIZES[config.model_size])
    is_mt30 = set(spec.tasks) == set(expand_tasks("mt30"))
    if is_mt30 and config.model_size == 19:
        size["latent_dim"] = 512
    if spec.obs == "rgb":
        size["latent_dim"] = config.num_channels * 16  # the last convolution's output is 4 x 4
        require(
            config.latent_dim in (None, size["latent_dim"]),
            "latent_dim follows from num_channels for obs=rgb",
        )
    size["task_dim"] = (64 if is_mt30 and config.model_size in (5, 19, 48) else 96) if spec.multitask else 0
    for name in size:
        override = getattr(config, name)
        if override is not None and (name != "task_dim" or spec.multitask):
            size[name] = override
    require(
        size["latent_dim"] % config.simnorm_dim == 0,
        f"simnorm_dim: {config.simnorm_dim} does not divide the latent length {size['latent_dim']}",
    )
    return Architecture(**size)
