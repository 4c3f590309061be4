// Tails the status of all executions from Node: one line of JSON a message, {"subject": .., "status": ..}.
// Run: npm ci && IM_URL=nats://TOKEN@127.0.0.1:4222 node tail.mjs [--count MESSAGES | --finished EXECUTIONS]   (until stopped without)
import { connect } from "@nats-io/transport-node";

const terminal = /^im\.status\.[^.]+\.[^.]+\._\.(completed|failed|cancelled)$/;
const [mode, limit] = process.argv.slice(2);
const { host, username } = new URL(process.env.IM_URL);
const nats = await connect({ servers: host, token: username || undefined, maxReconnectAttempts: -1 });
const messages = nats.subscribe("im.status.>");
await nats.flush();
console.error("listening");

let left = Number(limit ?? Infinity);
for await (const message of messages) {
  console.log(JSON.stringify({ subject: message.subject, status: message.json() }));
  if (mode === "--count" || (mode === "--finished" && terminal.test(message.subject))) left -= 1;
  if (left === 0) break;
}
await nats.close();
