"""What commands there are: where the function of each is, what is said of it, and a call to begin from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: where its function is, and what `--help` says of it before that module is imported."""

    module: str
    function: str = "main"
    summary: str
    example: str = ""  # arguments of a call that makes sense, shown by the command's own help


# The options of a command are its function's arguments, read by tyro: required ones by position, the others by --name.
# A function returns what it has to tell as plain JSON: that is what --json prints. One that has an argument `json` of
# its own prints it itself, since it ends with another exit code than 0 or tells something before it ends.
COMMANDS: dict[str, Command] = {
    "demo": Command(
        module="vap_gym.demo",
        summary="imagine a robot from actions; write out/demo.mp4",
        example="--out out --seed 3",
    ),
    "list": Command(
        module="vap_gym.commands.listing",
        function="everything",
        summary="list robots, envs with their tasks, world models and judges",
    ),
    "doctor": Command(
        module="vap_gym.commands.doctor",
        summary="check this machine, or a data set, for known traps",
        example="out/droid --episodes 8",
    ),
    "rollout": Command(
        module="vap_gym.commands.rollout",
        summary="play episodes in an env, by any policy; a video each, a data set",
        example="VAP-RT1-v0 --policy expert:noise=0.1 --seed 3 --out out/rollout",
    ),
    "data generate": Command(
        module="vap_gym.sim.generate",
        summary="record episodes in the simulator",
        example="data/droid --episodes 450",
    ),
    "data imagine": Command(
        module="vap_gym.evaluate.imagined_set",
        summary="oracle episodes as the model shows them",
        example="data/droid data/imagined_droid --episodes 220",
    ),
    "data import": Command(
        module="vap_gym.commands.import_data",
        summary="import recordings of others as episodes",
        example="droid path/to/droid out/droid --fps 5",
    ),
    "data describe": Command(
        module="vap_gym.commands.describe",
        summary="say what a folder of episodes holds",
        example="data/droid",
    ),
    "recover hands": Command(
        module="vap_gym.commands.recover_hands",
        summary="pairs of hand videos and detections",
        example="videos detections out/hands --size 512 512",
    ),
    "recover hand-pictures": Command(
        module="vap_gym.commands.recover_hand_pictures",
        summary="annotated pictures of hands as episodes",
        example="pictures/interhand2.6m out/hands",
    ),
    "recover robot": Command(
        module="vap_gym.commands.recover_robot",
        summary="pairs of robot logs, judged and rectified",
        example="out/droid out/pairs --view cam0",
    ),
    "train codec": Command(
        module="vap_gym.train.codec",
        summary="train the autoencoder of a world model",
        example="tiny_codec --out runs/codec",
    ),
    "train world": Command(
        module="vap_gym.train.world",
        summary="train the dynamics of a world model",
        example="tiny_world --out runs/world",
    ),
    "train video": Command(
        module="vap_gym.train.video",
        summary="train the video model, of any size",
        example="tiny_video_base --out runs/video",
    ),
    "train appearance": Command(
        module="vap_gym.train.appearance",
        summary="train what the robot looks like",
        example="tiny_appearance --out runs/appearance",
    ),
    "train background": Command(
        module="vap_gym.train.background",
        summary="train what is behind a robot",
        example="tiny_background --out runs/background",
    ),
    "train things": Command(
        module="vap_gym.train.things",
        summary="train the finder of things in first pictures",
        example="tiny_things --out runs/things",
    ),
    "train motion": Command(
        module="vap_gym.train.motion",
        summary="train how things move when touched",
        example="tiny_motion --out runs/motion",
    ),
    "train familiar": Command(
        module="vap_gym.train.familiar",
        summary="train what tells which starts are strange",
        example="tiny_familiar --out runs/familiar",
    ),
    "train judge": Command(
        module="vap_gym.train.judge",
        summary="train the judge that reads gripper and objects",
        example="tiny_judge --out runs/judge",
    ),
    "train publish": Command(
        module="vap_gym.train.publish",
        summary="gather trained parts into a model folder",
        example="my_model --codec runs/encoder --appearance runs/background",
    ),
    "evaluate": Command(
        module="vap_gym.commands.evaluate",
        summary="try policies in the same trials; write a report",
        example="expert shaky=expert:noise=0.35 random --task push --starts 16",
    ),
    "judge": Command(
        module="vap_gym.commands.evaluate_judge",
        summary="judge kept episodes again, by another judge",
        example="out/evaluate labels:labels.csv",
    ),
    "agree": Command(
        module="vap_gym.commands.agree",
        summary="how well imagined success stands for true success",
        example="out/imagined out/true --picture out/agreement.png",
    ),
    "trials": Command(
        module="vap_gym.commands.trials",
        summary="how many trials it takes, before any is played",
        example="0.3 0.5 0.6 --half-width 0.08 --most-mmrv 0.05",
    ),
    "plan": Command(
        module="vap_gym.commands.plan",
        summary="plan an episode in imagination and carry it out",
        example="--task push --seed 3 --out out/plan",
    ),
    "train-rl": Command(
        module="vap_gym.commands.train_rl",
        summary="train an agent in imagination, or in the oracle",
        example="--task reach --steps 20000 --out runs/reach",
    ),
    "serve": Command(
        module="vap_gym.commands.serve",
        summary="serve envs to other processes, machines, languages",
        example="--port 8000 --envs VAP-DROID-v0 --max-sessions 16",
    ),
    "bench fidelity": Command(
        module="vap_gym.evaluate.fidelity",
        summary="how true the imagined frames are",
        example="--env VAP-DROID-v0 --limit 16",
    ),
    "bench real": Command(
        module="vap_gym.evaluate.real_droid",
        summary="how true real DROID recordings come out",
        example="--droid ../shared/data/droid --limit 2",
    ),
    "bench trust": Command(
        module="vap_gym.evaluate.trust",
        summary="how far trust in a frame can be trusted",
        example="--env VAP-DROID-v0 --limit 16",
    ),
    "bench familiar": Command(
        module="vap_gym.evaluate.familiar",
        summary="measure how strange starts are told from usual ones",
        example="--workers 2",
    ),
    "bench speed": Command(
        module="vap_gym.evaluate.speed",
        summary="how fast steps, roll-outs and prompts are",
        example="--out None --repeats 10",
    ),
    "bench tables": Command(
        module="vap_gym.evaluate.tables",
        summary="the paper's tables, of models trained for it",
        example="--dry-run",
    ),
    "metrics": Command(
        module="vap_gym.commands.metrics",
        summary="score clips or masks against the true ones",
        example="out/imagined.mp4 out/true.mp4 --out out/scores.json",
    ),
    "calibrate clicks": Command(
        module="vap_gym.commands.calibrate",
        function="clicks",
        summary="fit a camera to clicks on the robot",
        example="clicks.json path/to/droid --camera cam0 --focal-px 260",
    ),
    "calibrate marker": Command(
        module="vap_gym.commands.calibrate",
        function="marker",
        summary="fit cameras to a marker on the hand",
        example="samples.json --out out/cameras.json",
    ),
    "calibrate align": Command(
        module="vap_gym.commands.calibrate",
        function="align",
        summary="refine a rough camera, without clicks",
        example="out/droid rough_cameras.json --camera cam0",
    ),
    "robots": Command(module="vap_gym.commands.listing", function="robots", summary="list the robots"),
    "robot add": Command(
        module="vap_gym.commands.robot",
        summary="draft a robot's card from any URDF",
        example="my.urdf --tip tool0 --out robots/mine",
    ),
    "body": Command(
        module="vap_gym.commands.body",
        summary="sample a robot's surface, for its card",
        example="panda_robotiq --out out/body.npz",
    ),
    "mesh": Command(
        module="vap_gym.commands.mesh",
        summary="simplify a robot's surface, for its card",
        example="panda_robotiq --out out/mesh.npz",
    ),
    "envs": Command(module="vap_gym.commands.listing", function="envs", summary="list the environments"),
}
