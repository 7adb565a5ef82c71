//! The one task runner: `cargo xtask` alone lists the tasks. One file per task; no logic here.
#![forbid(unsafe_code)]

mod bench;
mod build;
mod check;
mod demo;
mod fuzz;
mod lab;
mod openapi;
mod package;
mod setup;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// berth's tasks. Each says what it is about to install and installs what is missing.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Show the whole way: a tenant's REST call boots a Linux guest
    Demo(demo::Arguments),
    /// Run the tests, tier by tier, with one closing count
    Test(test::Arguments),
    /// Boot an emulated host: run a scenario on it, or get a prompt
    Lab(lab::Arguments),
    /// Measure, and compare with others in the same run
    Bench(bench::Arguments),
    /// Throw made-up input at what guests and strangers reach
    Fuzz(fuzz::Arguments),
    /// Build the .deb and .rpm packages
    Package(package::Arguments),
    /// Write docs/openapi.json as the controller tells it
    Openapi,
    /// Formatting, lints and house rules: the fast part of `test`
    Check,
}

fn main() -> ExitCode {
    let Some(task) = Arguments::parse().task else {
        return list_tasks();
    };
    let result = match task {
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Lab(arguments) => lab::run(&arguments),
        Task::Bench(arguments) => bench::run(arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Package(arguments) => package::run(&arguments),
        Task::Openapi => openapi::run(),
        Task::Check => check::run(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            berth_tests::progress::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn list_tasks() -> ExitCode {
    berth_tests::progress::say("Tasks (`cargo xtask TASK --help` tells more):\n");
    for task in Arguments::command().get_subcommands() {
        let about = task
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default();
        berth_tests::progress::say(&format!("  {:<9} {about}", task.get_name()));
    }
    ExitCode::SUCCESS
}
