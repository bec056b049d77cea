//! The `agent` binary: parses, loads, runs, exits.

use std::{path::PathBuf, process::ExitCode as ProcessCode};

use agent::{
    app,
    attach::OwnAgent,
    cli::{self, Command, ConfigCommand, DrillArgs, RoleArgs, SendArgs, StatusArgs},
    config::{self, Config, Input},
    drill::{Order, command},
    exit::ExitCode,
    logging, orders, status,
};
use hierarchy::order::Target;

fn main() -> ProcessCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(early) => {
            early.print();
            return early.code().into();
        }
    };
    // One TLS stack, chosen once: with two at hand rustls would refuse to guess.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let code = match cli.command {
        None => run_role(&cli.role),
        Some(Command::Status(args)) => show_status(&args),
        Some(Command::Drill(args)) => drill(&args),
        Some(Command::Send(args)) => send(args),
        Some(Command::Config(ConfigCommand::Check(role))) => check(&role),
        Some(Command::Config(ConfigCommand::Explain)) => {
            print!("{}", config::explain());
            ExitCode::Ok
        }
        #[cfg(feature = "dev")]
        Some(Command::Dev(args)) => agent::dev::run(&args),
        #[cfg(feature = "dev")]
        Some(Command::Bench(bench)) => match &bench {
            cli::Bench::Link(args) => agent::bench::link::run(args),
            cli::Bench::Ingest(args) => agent::bench::ingest::run(args),
            cli::Bench::Backlog(args) => agent::bench::backlog::run(args),
            cli::Bench::Children(args) => agent::bench::children::run(args),
        },
    };
    code.into()
}

fn load(role: &RoleArgs) -> Result<Config, ExitCode> {
    config::load(Input::from_process(role.config.clone(), role.overrides())).map_err(|errors| {
        eprint!("{errors}");
        ExitCode::Usage
    })
}

fn run_role(role: &RoleArgs) -> ExitCode {
    let config = match load(role) {
        Ok(config) => config,
        Err(code) => return code,
    };
    logging::start(&config.log);
    // Two workers: the link and everything else. An edge machine has other work to do.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(app::run(config)),
        Err(error) => Err(app::AppError::Machine(error.to_string())),
    };
    match ended {
        Ok(()) => ExitCode::Ok,
        Err(error) => {
            eprintln!("agent: {error}");
            error.code()
        }
    }
}

fn check(role: &RoleArgs) -> ExitCode {
    match load(role) {
        Ok(config) => {
            println!("the configuration of {} {} is right", config.level(), config.path);
            ExitCode::Ok
        }
        Err(code) => code,
    }
}

fn drill(args: &DrillArgs) -> ExitCode {
    let order = Order { cut: args.cut.clone(), seconds: args.lasting.as_secs() };
    let asked = ask_own_agent(args.state_dir.as_ref(), args.config.as_ref(), async |agent| {
        command::ask(&agent, &order).await.map_err(|error| error.to_string())
    });
    match asked {
        Ok(report) if args.json => println!("{}", serde_json::to_string(&report).unwrap_or_default()),
        Ok(report) => print!("{}", report.to_text()),
        Err(code) => return code,
    }
    ExitCode::Ok
}

fn send(args: SendArgs) -> ExitCode {
    let ask = orders::command::Ask {
        target: Target { path: args.to, all: args.all },
        subject: args.subject,
        body: args.body.into(),
        lane: args.lane,
        good_for: args.expires,
        wait: args.wait,
    };
    let sent = ask_own_agent(args.state_dir.as_ref(), args.config.as_ref(), async |agent| {
        orders::command::send(&agent, ask).await.map_err(|error| error.to_string())
    });
    match sent {
        Ok(given) => {
            if args.json {
                println!("{}", serde_json::to_string(&given).unwrap_or_default());
            } else {
                print!("{}", given.to_text());
            }
            if given.is_expired() { ExitCode::Failure } else { ExitCode::Ok }
        }
        Err(code) => code,
    }
}

/// Speaks with the agent of this machine, found by its state directory or its configuration.
fn ask_own_agent<T>(
    state_dir: Option<&PathBuf>,
    config: Option<&PathBuf>,
    ask: impl AsyncFnOnce(OwnAgent) -> Result<T, String>,
) -> Result<T, ExitCode> {
    let own = match state_dir {
        Some(dir) => OwnAgent::Embedded(dir.clone()),
        None => load(&RoleArgs { config: config.cloned(), ..RoleArgs::default() })?.into(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = match runtime {
        Ok(runtime) => runtime.block_on(ask(own)),
        Err(error) => Err(error.to_string()),
    };
    asked.map_err(|error| {
        eprintln!("agent: {error}");
        ExitCode::Failure
    })
}

fn show_status(args: &StatusArgs) -> ExitCode {
    let http = match (&args.target.http, &args.target.state_dir) {
        (Some(http), _) => Ok(*http),
        (None, Some(dir)) => status::addresses(dir).map(|addresses| addresses.http),
        (None, None) => {
            let role = RoleArgs { config: args.target.config.clone(), ..RoleArgs::default() };
            match load(&role) {
                Ok(config) => status::addresses(&config.state_dir).map(|addresses| addresses.http),
                Err(code) => return code,
            }
        }
    };
    let json = |text: serde_json::Result<String>| text.unwrap_or_default() + "\n";
    let shown = http.and_then(|http| match (args.loss, args.json) {
        (false, true) => status::fetch(http).map(|status| json(serde_json::to_string(&status))),
        (false, false) => status::fetch(http).map(|status| status.to_text()),
        (true, true) => status::fetch_losses(http).map(|report| json(serde_json::to_string(&report))),
        (true, false) => status::fetch_losses(http).map(|report| status::losses_to_text(&report)),
    });
    match shown {
        Ok(text) => {
            print!("{text}");
            ExitCode::Ok
        }
        Err(error) => {
            eprintln!("agent: {error}");
            ExitCode::Failure
        }
    }
}
