"""Why a job waits, and what would help: Slurm's words in plain ones."""

# Reason of squeue or scontrol, as far as it is spelt out here -> what it means, and what would help.
WAITING: dict[str, tuple[str, str]] = {
    "Priority": ("jobs of higher priority are before it", "wait; fewer --nodes or a shorter --time fit into gaps"),
    "Resources": ("it is the next, and waits for nodes to become free", "wait; fewer --nodes would start sooner"),
    "None": ("Slurm has not looked at it yet", "wait a minute"),
    "BeginTime": ("it was requeued or has a start time; Slurm waits about two minutes after a requeue",
                  "wait, or: scontrol update JobId={job} StartTime=now"),
    "DependencyNeverSatisfied": ("a job that it depends on has failed or gone", "scancel {job}, and submit it again"),
    "Dependency": ("it waits for the end of another job", "wait; `scontrol show job {job}` names it"),
    "JobHeldUser": ("you hold it", "scontrol release {job}"),
    "JobHeldAdmin": ("an administrator holds it", "ask them why"),
    "launch failed requeued held": ("it could not be started on a node and is held",
                                    "scontrol release {job}; tell your administrators of the node"),
    "ReqNodeNotAvail": ("nodes that it needs are down, drained or reserved",
                        "wait, or submit with another --constraint, --exclude or --partition"),
    "PartitionDown": ("the partition takes no jobs to run now", "wait, or submit with another --partition"),
    "PartitionInactive": ("the partition takes no jobs to run now", "wait, or submit with another --partition"),
    "PartitionTimeLimit": ("--time is above the limit of the partition",
                           "scontrol update JobId={job} TimeLimit=...; `sinfo -o '%P %l'` shows the limits"),
    "PartitionNodeLimit": ("--nodes is above what the partition has or allows", "submit with fewer --nodes"),
    "PartitionConfig": ("the partition does not allow such a job", "submit with another --partition"),
    "BadConstraints": ("no node has what it asks for", "submit with another --constraint, --gpus-per-node or memory"),
    "Licenses": ("it waits for a license", "wait"),
    "Reservation": ("it waits for its reservation to begin", "wait; `scontrol show reservation`"),
    "InvalidAccount": ("the account is not valid", "submit with another --account"),
    "InvalidQOS": ("the QOS is not valid for the account", "submit with another --qos"),
    "NodeDown": ("a node that it needs is down", "wait, or submit without it"),
    "Prolog": ("the nodes are being made ready", "wait"),
    "JobArrayTaskLimit": ("another task of its array runs", "wait"),
    "QOSMax": ("a limit of the QOS for each job or user is reached", "wait for your other jobs, or use another --qos"),
    "QOSGrp": ("a limit of the QOS for everyone is reached", "wait, or use another --qos"),
    "QOS": ("a limit of the QOS is reached", "wait, or ask for less, or use another --qos"),
    "AssocMax": ("a limit of your account for each user is reached", "wait for your other jobs, or ask for less"),
    "AssocGrp": ("a limit of your account is reached", "wait for other jobs of the account, or use another --account"),
    "MaxMemPerLimit": ("it asks for more memory than the partition allows", "submit with less --sbatch-arg=--mem=..."),
}  # fmt: skip

ENDED: dict[str, str] = {
    "OUT_OF_MEMORY": "a node ran out of memory: submit with more (--sbatch-arg=--mem=0 takes all), or lower "
                     "training.micro_batch_size or data.num_workers",
    "NODE_FAIL": "a node was lost, and Slurm did not requeue the job: submit it again, it goes on",
    "TIMEOUT": "the time limit came before the save had ended: submit with a longer --signal-lead; it goes on from the "
               "newest checkpoint",
    "PREEMPTED": "a job of higher priority took its nodes: submit it again, it goes on",
    "CANCELLED": "it was cancelled (scancel): submit it again to go on",
    "BOOT_FAIL": "a node did not boot: submit it again",
    "DEADLINE": "its deadline came",
    "FAILED": "see the end of its output",
}  # fmt: skip


def waiting(reason: str, job: str) -> tuple[str, str]:
    """What a reason of a pending job means, and what would help."""
    words = reason.strip("()")
    known = max((name for name in WAITING if words.startswith(name)), key=len, default="")
    if not known:
        return f"Slurm says '{words}'", f"`scontrol show job {job}`; squeue(1) lists the reasons"
    meaning, help_ = WAITING[known]
    return meaning, help_.format(job=job)


def ended(state: str) -> str:
    """What a state of an ended job means for the run; empty for an unknown one."""
    return next((meaning for name, meaning in ENDED.items() if state.startswith(name)), "")
