// SPDX-License-Identifier: MPL-2.0

//! `state-topic` and `availability-topic`, with a real Mosquitto.

use crate::common::{end, launch, start};
use droidrelay_testkit::{
    clients::observer::{Observer, Seen},
    servers::mosquitto::Mosquitto,
};

const STATE: &str = "robot/elsewhere/state";
const AVAILABILITY: &str = "robot/elsewhere/there";

#[test]
fn state_and_availability_are_published_where_the_properties_say() {
    let broker = Mosquitto::start().unwrap();
    let watched = [STATE, AVAILABILITY];
    let observer = Observer::start_with(&broker, &watched).unwrap();
    let login = &broker.operator;
    let pipeline = launch(&format!(
        "videotestsrc is-live=true ! mqttvalve broker=mqtt://127.0.0.1:{} topic=robot/elsewhere \
         username={} password={} state-topic={STATE} availability-topic={AVAILABILITY} ! fakesink",
        broker.port(),
        login.user,
        login.password
    ));
    let wait = |mark, on: &str, part: &str| {
        let wanted = |seen: &Seen| matches!(seen, Seen::Other { topic, text } if topic == on && text.contains(part));
        observer.seen().wait(mark, part, wanted).unwrap();
    };
    start(&pipeline);
    wait(0, AVAILABILITY, "online");
    wait(0, STATE, "\"state\":\"idle\"");
    let mark = observer.seen().mark();
    end(pipeline);
    wait(mark, AVAILABILITY, "offline");
}
