"""Builds a directory with Kiln, and prints the digest of the image.

    python3 build.py ./web localhost:5000/web:1

The builder is KILN_BUILDER, or 127.0.0.1:50051. See README.md for the stubs.
"""

import os
import sys
import tarfile
import tempfile
import time
import uuid

import grpc

from kiln.builder.v1 import build_pb2, builder_service_pb2 as rpc, builder_service_pb2_grpc, request_pb2
from kiln.errors.v1 import errors_pb2

PIECE = 512 * 1024


def pieces(project, tar):
    """The messages of an upload: a header, then the bytes."""
    yield rpc.UploadContextRequest(header=rpc.UploadHeader(project=project))
    while data := tar.read(PIECE):
        yield rpc.UploadContextRequest(data=data)


def upload(builder, project, directory):
    """Sends a directory and returns the digest that names it."""
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.add(directory, arcname=".")
        file.seek(0)
        return builder.UploadContext(pieces(project, file)).digest


def watch(builder, build_id):
    """Yields the events of a build, each once, also over broken connections."""
    sequence, pause = 0, 0.1
    while True:
        try:
            request = rpc.WatchBuildRequest(build_id=build_id, from_sequence=sequence + 1)
            for response in builder.WatchBuild(request):
                sequence, pause = response.event.sequence, 0.1
                yield response.event
                if response.event.HasField("outcome"):
                    return
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE or pause > 30:
                raise
        time.sleep(pause)
        pause *= 2


def explain(outcome):
    """Why a build did not succeed: the place, the step and its last lines."""
    lines = [outcome.error.message]
    for detail in outcome.error.details:
        failure = errors_pb2.BuildFailure()
        if detail.Unpack(failure):
            lines += [errors_pb2.FailureClass.Name(getattr(failure, "class")), failure.step]
            lines += [failure.location.snippet, *failure.log_tail]
    return "\n".join(line for line in lines if line)


def main(directory, tag):
    # TLS: grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert))
    with grpc.insecure_channel(os.environ.get("KILN_BUILDER", "127.0.0.1:50051")) as channel:
        builder = builder_service_pb2_grpc.BuilderServiceStub(channel)
        spec = request_pb2.BuildSpec(
            project="example",
            context=request_pb2.Context(uploaded=request_pb2.UploadedContext(digest=upload(builder, "example", directory))),
            outputs=[request_pb2.Output(registry=request_pb2.RegistryOutput(tags=[tag]))],
        )
        # The same request_id is the same build: this call may be made again.
        request = rpc.StartBuildRequest(spec=spec, request_id=str(uuid.uuid4()))
        build = builder.StartBuild(request, wait_for_ready=True, timeout=60).build
        for event in watch(builder, build.id):
            if event.HasField("log"):
                sys.stderr.buffer.write(event.log.data)
        outcome = event.outcome
        if outcome.state != build_pb2.BUILD_STATE_SUCCEEDED:
            sys.exit(explain(outcome))
        print(outcome.outputs[0].digest)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
