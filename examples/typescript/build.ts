// Builds a git repository with Kiln, and prints the digest of the image.
//
//   npm start -- https://git.example.org/web.git localhost:5000/web:1
//
// The builder is KILN_BUILDER, or 127.0.0.1:50051. A file in place of the URL is
// taken for a Dockerfile that copies nothing.
import { randomUUID } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import * as grpc from "@grpc/grpc-js";
import * as loader from "@grpc/proto-loader";

// All contracts as descriptors, as `buf build` writes them; see README.md.
const descriptors = readFileSync(new URL("kiln.binpb", import.meta.url));
const contract = loader.loadFileDescriptorSetFromBuffer(descriptors, { keepCase: true, longs: String, enums: String, arrays: true, oneofs: true });
const api: any = (grpc.loadPackageDefinition(contract) as any).kiln.builder.v1;
// TLS: grpc.credentials.createSsl(ca, key, cert)
const builder = new api.BuilderService(process.env.KILN_BUILDER ?? "127.0.0.1:50051", grpc.credentials.createInsecure());

// Starts a build. The same request_id is the same build: the call may be made again.
function start(spec: object): Promise<any> {
  const request = { spec, request_id: randomUUID() };
  const options = { deadline: Date.now() + 60_000 };
  const metadata = new grpc.Metadata({ waitForReady: true });
  return new Promise((resolve, reject) =>
    builder.StartBuild(request, metadata, options, (error: Error | null, response: any) =>
      error ? reject(error) : resolve(response.build)));
}

// Yields the events of a build, each once, also over broken connections.
async function* watch(buildId: string): AsyncGenerator<any> {
  let sequence = 0n;
  for (let pause = 100; ; pause *= 2) {
    try {
      for await (const { event } of builder.WatchBuild({ build_id: buildId, from_sequence: (sequence + 1n).toString() })) {
        sequence = BigInt(event.sequence);
        pause = 100;
        yield event;
        if (event.outcome) return;
      }
    } catch (error: any) {
      if (error.code !== grpc.status.UNAVAILABLE || pause > 30_000) throw error;
    }
    await sleep(pause);
  }
}

// Why a build did not succeed: the place, the step and its last lines.
function explain(outcome: any): string {
  const failureType = contract["kiln.errors.v1.BuildFailure"] as loader.MessageTypeDefinition<object, any>;
  const lines = [outcome.error.message];
  for (const detail of outcome.error.details) {
    if (!detail.type_url.endsWith("/kiln.errors.v1.BuildFailure")) continue;
    const failure = failureType.deserialize(detail.value);
    lines.push(failure.class, failure.step, failure.location?.snippet, ...failure.log_tail);
  }
  return lines.filter(Boolean).join("\n");
}

const [source, tag] = process.argv.slice(2);
if (!tag) throw new Error("usage: npm start -- GIT_URL TAG");
const what = existsSync(source)
  ? { context: { inline: {} }, dockerfile: { inline: readFileSync(source, "utf8") } }
  : { context: { git: { url: source } } };
const build = await start({ project: "example", ...what, outputs: [{ registry: { tags: [tag] } }] });
for await (const event of watch(build.id)) {
  if (event.log) process.stderr.write(event.log.data);
  if (!event.outcome) continue;
  if (event.outcome.state === "BUILD_STATE_SUCCEEDED") {
    console.log(event.outcome.outputs[0].digest);
  } else {
    console.error(explain(event.outcome));
    process.exitCode = 1;
  }
}
builder.close();
