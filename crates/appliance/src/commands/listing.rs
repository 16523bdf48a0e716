//! What is there: containers, images, versions, routes.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::developer::targets::{AppArgs, Target, Targets};
use crate::globals::Globals;
use crate::ui;
use crate::wire::{App, ContainerRow, ImageRow, RouteRow};

/// Which app, and how to print
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub app: AppArgs,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Asks every host and prints a table for each, or one JSON object.
async fn each<T: DeserializeOwned + Serialize>(
    args: &ListArgs,
    globals: &Globals,
    what: &str,
    heading: &str,
    show: impl Fn(&Target, Vec<T>),
) -> anyhow::Result<()> {
    let targets = Targets::find(&args.app, globals).await?;
    let mut all = serde_json::Map::new();
    for host in &targets.hosts {
        let path = match what.strip_prefix('/') {
            Some(whole) => format!("/v1/{whole}"),
            None => format!("/v1/apps/{}/{what}", targets.app),
        };
        let rows: Vec<T> = host.link.get(&path).await?;
        if args.json {
            all.insert(host.name.clone(), serde_json::to_value(rows)?);
            continue;
        }
        ui::line(&format!("{heading} Host: {}", host.name));
        show(host, rows);
        ui::line("");
    }
    if args.json {
        ui::json(&all);
    }
    Ok(())
}

fn print_containers(rows: &[ContainerRow]) {
    let cells = rows.iter().map(|row| {
        vec![
            row.id.clone(),
            row.name.clone(),
            row.role.clone().unwrap_or_else(|| "-".to_owned()),
            row.version.clone().unwrap_or_else(|| "-".to_owned()),
            row.status.clone(),
            if row.current { "current" } else { "" }.to_owned(),
        ]
    });
    ui::table(&["CONTAINER", "NAME", "ROLE", "VERSION", "STATUS", ""], cells);
}

/// Running containers of the app with their routes.
///
/// # Errors
/// When a host cannot be asked.
pub async fn details(args: &ListArgs, globals: &Globals) -> anyhow::Result<()> {
    each::<ContainerRow>(args, globals, "containers", "App", |_, mut rows| {
        rows.retain(|row| row.state == "running" || row.current);
        print_containers(&rows);
    })
    .await
}

/// All containers of the app.
///
/// # Errors
/// When a host cannot be asked.
pub async fn containers(args: &ListArgs, globals: &Globals) -> anyhow::Result<()> {
    each::<ContainerRow>(args, globals, "containers", "App", |_, rows| {
        print_containers(&rows)
    })
    .await
}

/// Running containers that are not of the current release.
///
/// # Errors
/// When a host cannot be asked.
pub async fn stale(args: &ListArgs, globals: &Globals) -> anyhow::Result<()> {
    each::<ContainerRow>(args, globals, "containers", "App", |_, mut rows| {
        rows.retain(|row| row.state == "running" && !row.current && row.role.is_some());
        if rows.is_empty() {
            ui::line("no stale container runs");
        } else {
            print_containers(&rows);
        }
    })
    .await
}

/// Images of the app.
///
/// # Errors
/// When a host cannot be asked.
pub async fn images(args: &ListArgs, globals: &Globals) -> anyhow::Result<()> {
    each::<ImageRow>(args, globals, "images", "App", |_, rows| {
        // A line for each name, as Docker has it: the newest is `latest` too.
        let nameless = ["-".to_owned()];
        let cells = rows.iter().flat_map(|row| {
            let names = if row.names.is_empty() {
                &nameless[..]
            } else {
                &row.names
            };
            names.iter().map(move |name| {
                vec![
                    name.clone(),
                    row.id.clone(),
                    row.created.clone().unwrap_or_else(|| "-".to_owned()),
                    ui::bytes(row.size),
                    if row.current { "current" } else { "" }.to_owned(),
                ]
            })
        });
        ui::table(&["IMAGE", "ID", "CREATED", "SIZE", ""], cells);
    })
    .await
}

/// Routes of the proxy.
///
/// # Errors
/// When a host cannot be asked.
pub async fn routes(args: &ListArgs, globals: &Globals) -> anyhow::Result<()> {
    each::<RouteRow>(args, globals, "/proxy/services", "Proxy", |_, rows| {
        let cells = rows.iter().map(|row| {
            let targets: Vec<String> = row
                .targets
                .iter()
                .map(|target| {
                    format!(
                        "{}{}",
                        target.address,
                        if target.healthy { "" } else { " (unhealthy)" }
                    )
                })
                .collect();
            vec![
                row.service.clone(),
                if row.hosts.is_empty() {
                    "*".to_owned()
                } else {
                    row.hosts.join(",")
                },
                row.paths.join(","),
                targets.join(","),
                row.state.clone(),
                if row.tls { "yes" } else { "no" }.to_owned(),
            ]
        });
        ui::table(&["SERVICE", "HOST", "PATH", "TARGET", "STATE", "TLS"], cells);
        for row in &rows {
            for problem in &row.problems {
                ui::line(&format!("problem {}: {problem}", row.service));
            }
        }
    })
    .await
}

/// Each of the roles with the version it runs.
fn versions(app: &App, roles: &[String]) -> Vec<(String, String)> {
    let Some(current) = &app.current else {
        return Vec::new();
    };
    let found: Vec<(String, String)> = app
        .containers
        .iter()
        .filter(|container| roles.contains(&container.role))
        .map(|container| {
            let version = container.version.as_ref().unwrap_or(&current.version);
            (container.role.clone(), version.clone())
        })
        .collect();
    if found.is_empty() {
        return vec![(String::new(), current.version.clone())];
    }
    found
}

/// The version that serves.
///
/// # Errors
/// When a host cannot be asked.
pub async fn version(args: &ListArgs, globals: &Globals) -> anyhow::Result<()> {
    let targets = Targets::find(&args.app, globals).await?;
    let mut all = serde_json::Map::new();
    for host in &targets.hosts {
        let app: App = host.link.get(&format!("/v1/apps/{}", targets.app)).await?;
        let versions = versions(&app, &host.roles);
        let version = versions.first().map(|(_, version)| version);
        let one = versions.iter().all(|(_, other)| Some(other) == version);
        if args.json {
            let value = match one {
                true => serde_json::to_value(version)?,
                false => serde_json::to_value(versions.into_iter().collect::<BTreeMap<_, _>>())?,
            };
            all.insert(host.name.clone(), value);
            continue;
        }
        ui::line(&format!("App Host: {}", host.name));
        match version {
            None => ui::line("nothing serves"),
            Some(version) if one => ui::line(version),
            // Somebody rolled out a part of the roles.
            Some(_) => versions
                .iter()
                .for_each(|(role, version)| ui::line(&format!("{role}: {version}"))),
        }
        ui::line("");
    }
    if args.json {
        ui::json(&all);
    }
    Ok(())
}
