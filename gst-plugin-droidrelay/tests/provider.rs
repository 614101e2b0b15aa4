// SPDX-License-Identifier: MPL-2.0

//! TLS beside others in the process that use rustls too. A program of its own: what it changes
//! belongs to the process.

mod common;

use common::{end, launch, no_error, start, until};
use droidrelay_testkit::{
    certs::{Authority, Validity, write_private},
    servers::mosquitto::{Listener, Mosquitto, Options},
};
use droidrelay_wire::mqtt::broker::Scheme;
use gst::prelude::*;
use rustls::crypto::{CryptoProvider, ring};

#[test]
fn whatever_provider_the_process_has_the_plugin_uses_its_own() {
    let authority = Authority::new().unwrap();
    let broker = Mosquitto::start_with(Options {
        tls: Some(authority.server(&["127.0.0.1"], Validity::Now).unwrap()),
        listeners: vec![Listener {
            scheme: Scheme::Wss,
            address: [127, 0, 0, 1].into(),
        }],
        ..Options::default()
    })
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca_file = authority.write(folder.path()).unwrap();
    let password = write_private(folder.path(), "pass", &broker.robot.password).unwrap();
    let connect = || {
        for scheme in [Scheme::Mqtts, Scheme::Wss] {
            let pipeline = launch(&format!(
                "videotestsrc is-live=true ! mqttvalve name=valve broker={} ca-file={} username={} password-file={} ! fakesink",
                broker.url_at(scheme, "127.0.0.1").unwrap(),
                ca_file.display(),
                broker.robot.user,
                password.display(),
            ));
            start(&pipeline);
            let valve = pipeline.by_name("valve").unwrap();
            until("a session", || valve.property("connected"));
            no_error(&pipeline);
            drop(valve);
            end(pipeline);
        }
    };

    connect();
    assert!(
        CryptoProvider::get_default().is_none(),
        "others in the process find a provider that they have not chosen"
    );

    // No TLS session comes about with this one.
    let useless = CryptoProvider {
        cipher_suites: Vec::new(),
        kx_groups: Vec::new(),
        ..ring::default_provider()
    };
    useless.install_default().unwrap();
    connect();
}
