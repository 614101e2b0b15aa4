// SPDX-License-Identifier: MPL-2.0

// aedes, which speaks MQTT 3.1 and 3.1.1: anybody may do anything.

import net from 'node:net';

import { Aedes } from 'aedes';

const broker = await Aedes.createBroker();
const server = net.createServer(broker.handle);
server.listen(0, '127.0.0.1', () => console.log(`port ${server.address().port}`));
