// An agent in Node with the official client. It answers the most frequent word of a text and how often it occurs.
// Run: npm ci && IM_URL=nats://TOKEN@127.0.0.1:4222 node agent.mjs AGENT [--count WORKS]   (serves until stopped without --count)
import { setTimeout as sleep } from "node:timers/promises";
import { jetstream } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";

function outcome({ input }) {
  const words = input?.text?.toLowerCase().match(/\p{L}+/gu);
  if (!words) return { error: { type: "NoText", message: "the work has no text", retryable: false } };
  const times = new Map();
  for (const word of words) times.set(word, (times.get(word) ?? 0) + 1);
  const [word, count] = [...times].reduce((most, next) => (next[1] > most[1] ? next : most));
  return { result: { word, times: count } };
}

const [agent, , works = Infinity] = process.argv.slice(2);
const { host, username } = new URL(process.env.IM_URL);
const nats = await connect({ servers: host, token: username || undefined, name: agent, maxReconnectAttempts: -1 });
const js = jetstream(nats);

for (let done = 0, consumer; done < works; ) {
  let message;
  try {
    consumer ??= await js.consumers.get("IM_WORK", agent); // the coordinator makes it when a workflow names the agent
    message = await consumer.next({ expires: 5_000 });
  } catch (error) {
    console.error(`no work for ${agent} yet, again in 1 s: ${error.message}`);
    consumer = undefined;
    await sleep(1_000);
  }
  if (!message) continue;
  const work = message.json();
  try {
    await js.publish(work.reply_to, JSON.stringify(outcome(work)));
  } catch (error) {
    if (error.message !== "maximum messages per subject exceeded") { // that would mean: already there
      console.error(`not stored, again in 5 s: ${error.message}`);
      message.nak(5_000);
      continue;
    }
  }
  await message.ackAck();
  done += 1;
}
await nats.drain();
