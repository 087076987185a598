"""`demo`: a web page on this computer: drop an image, see its segments, drag the thresholds.

The network runs once for an image; every move of a slider picks, fuses and merges its kernels again. Needs
`pip install -r requirements-demo.txt`.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

from pfcn_jax.apps.demo.session import DemoSession
from pfcn_jax.apps.demo.uploads import Limits
from pfcn_jax.checkpoints.loading import load_with_config
from pfcn_jax.errors import UserError
from pfcn_jax.inference.two_stage import TwoStagePredictor

LOOPBACK = ("127.0.0.1", "localhost")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a checkpoint or a working directory of `train`")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this computer only)")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--max-mib", type=float, default=20.0, help="largest upload in MiB (default: 20)")
    parser.add_argument("--max-megapixels", type=float, default=40.0, help="largest image (default: 40)")
    parser.add_argument("--long-side", type=int, default=1024, help="larger images are shrunk to it (default: 1024)")


def main(args: argparse.Namespace) -> int:
    try:
        import uvicorn

        from pfcn_jax.apps.demo.server import make_app
    except ModuleNotFoundError as error:
        raise UserError(f"the demo needs {error.name}: pip install -r requirements-demo.txt") from error
    limits = check_limits(args.max_mib, args.max_megapixels)
    if args.long_side < 32:
        raise UserError(f"--long-side {args.long_side}: must be at least 32 pixels")
    loaded = load_with_config(pathlib.Path(args.checkpoint), args.config_argv)
    session = DemoSession(TwoStagePredictor(loaded), limits, long_side=args.long_side)
    hosts: tuple[str, ...] = LOOPBACK
    if args.host not in LOOPBACK:
        hosts = ("*",)
        print(f"warning: --host {args.host}: whoever reaches this computer can use the demo", file=sys.stderr)
    print(f"demo of {loaded.config.name}: http://{args.host}:{args.port} (stop with Ctrl-C)", flush=True)
    uvicorn.run(
        make_app(session, allowed_hosts=hosts),
        host=args.host,
        port=args.port,
        log_level="warning",
        limit_concurrency=64,
        timeout_keep_alive=5,
    )
    return 0


def check_limits(max_mib: float, max_megapixels: float) -> Limits:
    """The limits from the flags' units.

    Raises:
      UserError: a limit that lets nothing through, or more than Pillow and OpenCV decode.
    """
    for flag, value, highest in (("--max-mib", max_mib, 1024.0), ("--max-megapixels", max_megapixels, 170.0)):
        if not 0.0 < value <= highest:
            raise UserError(f"{flag} {value:g}: must be above 0 and at most {highest:g}")
    return Limits(max_bytes=int(max_mib * 2**20), max_pixels=int(max_megapixels * 1e6))
