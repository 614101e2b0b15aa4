// SPDX-License-Identifier: MPL-2.0

//! The page in a real browser: the README's pictures, with real servers and a robot that plays a clip;
//! and a visit to a server that runs, as a person's who trusts its CA.

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context, Result, ensure};
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

/// Opens a running server's page and watches robots on it
#[derive(Args)]
pub struct Visit {
    /// The page: https://HOST:8443/
    url: String,
    /// The server's CA, which is imported; without it the browser must refuse the page
    ca: PathBuf,
    /// File of the password of the user "owner"
    password: PathBuf,
    /// Watched one after the other
    #[arg(required = true)]
    robots: Vec<String>,
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

pub fn visit(options: &Visit) -> Result<()> {
    let stranger = Browser::strict(None)?;
    let refused = stranger.open(&options.url, Screen::DESKTOP);
    let refused = refused.map_or_else(|err| err.to_string(), |_| "opened".to_owned());
    ensure!(
        refused.contains("ERR_CERT_AUTHORITY_INVALID"),
        "{} without its CA: {refused}",
        options.url
    );

    let browser = Browser::strict(Some(&options.ca))?;
    let password = fs::read_to_string(&options.password)
        .with_context(|| options.password.display().to_string())?;
    let page = browser.open(&options.url, Screen::PHONE)?;
    page.wait("!document.getElementById('sign-in').hidden")?;
    page.fill("#name", "owner")?;
    page.fill("#password", password.trim_end())?;
    page.press("Enter")?;
    for robot in &options.robots {
        let button = format!("[data-robot=\"{robot}\"] button");
        page.wait(&format!("document.querySelector('{button}') !== null"))?;
        page.click(&button)?;
        page.wait("document.getElementById('state-word').textContent === 'Ready'")?;
        let begin = Instant::now();
        page.click("#go")?;
        page.wait("document.getElementById('video').currentTime > 0 && document.getElementById('screen').classList.contains('shows')")?;
        let first = begin.elapsed().as_millis();
        page.wait(
            "document.getElementById('video').getVideoPlaybackQuality().totalVideoFrames >= 30",
        )?;
        let way = page.text("#way")?;
        println!("{robot}: picture {first} ms after the click, by {way}");
        page.click("#go")?;
        page.wait("document.getElementById('state-word').textContent === 'Ready'")?;
    }
    ensure!(page.complaints().is_empty(), "{:?}", page.complaints());
    page.close()
}
