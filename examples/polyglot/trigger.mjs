// Publishes a trigger event from Node, and prints the PubAck: it starts every workflow armed for that event.
// Run: npm ci && IM_URL=nats://TOKEN@127.0.0.1:4222 node trigger.mjs EVENT JSON [ID]   (the same ID again starts nothing twice)
import { randomUUID } from "node:crypto";
import { jetstream } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";

const [event, data, id = randomUUID()] = process.argv.slice(2);
const { host, username } = new URL(process.env.IM_URL);
const nats = await connect({ servers: host, token: username || undefined });
const body = JSON.stringify(JSON.parse(data)); // refuses what is no JSON before it is sent
const ack = await jetstream(nats).publish(`im.trigger.${event}`, body, { msgID: id }); // the header Nats-Msg-Id
console.log(JSON.stringify(ack));
await nats.close();
