// SPDX-License-Identifier: MPL-2.0

//! The README's pictures of the page: real servers, a robot that plays a clip, a real browser.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use droidrelay_testkit::{
    clients::browser::{Browser, Page, Screen},
    robot::camera::Camera,
    servers::cloud::{Cloud, Media, OTHER_TOPIC, ROBOT},
};
use droidrelay_wire::words::topics::{ONLINE, availability_topic, state_topic};

/// Takes pictures of the bridge's page
#[derive(Args)]
pub struct Options {
    /// Where they are written
    folder: PathBuf,
    /// What the robot sees
    clip: PathBuf,
}

pub fn run(options: &Options) -> Result<()> {
    let cloud = Cloud::start(Media::WebRtc)?;
    let camera = Camera::clip(&options.clip)?;
    let _robot = cloud.robot(&camera.line())?;
    let observer = &cloud.observer;
    observer.set_retained(&availability_topic(OTHER_TOPIC), ONLINE)?;
    observer.set_retained(&state_topic(OTHER_TOPIC), r#"{"state":"idle"}"#)?;
    let browser = Browser::start()?;
    let take = |page: &Page, name: &str| page.picture(&options.folder.join(name));

    for (name, screen) in [
        ("page-desktop-light.png", Screen::DESKTOP),
        ("page-desktop-dark.png", Screen::DESKTOP.dark()),
        ("page-phone-light.png", Screen::PHONE),
        ("page-phone-dark.png", Screen::PHONE.dark()),
    ] {
        let page = browser.open(&cloud.url(), screen)?;
        page.wait("!document.getElementById('sign-in').hidden")?;
        page.fill("#name", &cloud.viewer.user)?;
        page.fill("#password", &cloud.viewer.password)?;
        page.press("Enter")?;
        page.wait(&format!(
            "document.querySelector('[data-robot={ROBOT}]') !== null"
        ))?;
        page.click(&format!("[data-robot={ROBOT}] button"))?;
        page.wait("document.getElementById('state-word').textContent === 'Ready'")?;
        page.click("#go")?;
        page.wait("/fps/.test(document.getElementById('picture').textContent) && document.getElementById('state-word').textContent === 'Live'")?;
        // The browser draws the focus only where the keyboard was used last.
        page.eval("document.activeElement.blur()")?;
        take(&page, name)?;
        page.click("#go")?;
        page.wait("document.getElementById('state-word').textContent === 'Ready'")?;
        ensure!(page.complaints().is_empty(), "{:?}", page.complaints());
        page.close()?;
    }
    Ok(())
}
