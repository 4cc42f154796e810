//! `pull REPO IMAGE [--timings]`: what osctl's daemon does to get an image into a repository, and nothing else.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a program of the benchmark, not the product

use osctl::engine::cx::Cx;
use osctl::pull::{self, FetchOptions, WORKER_ARG};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

async fn run(repo: &str, image: &str, timings: bool) -> osctl::model::Result<()> {
    // Like the product: what skopeo of itself takes from a file only.
    let registries = std::env::var_os("CONTAINERS_REGISTRIES_CONF").map(Into::into);
    // On the file system of the repository, as the daemon has it.
    let spool = Some(Path::new(repo).with_extension("spool"));
    let repo = Path::new(repo);
    let opts = FetchOptions { registries, spool, repo: Some(repo.to_owned()), ..Default::default() };
    let cx = Cx::detached();
    let started = Instant::now();
    let resolved = pull::resolve(&cx, &image.parse()?, &opts).await?;
    let known = started.elapsed();
    let base = pull::pull(&cx, repo, &resolved, &opts).await?;
    println!("{}", base.commit);
    if timings {
        eprintln!(
            "resolve {:.3} s, pull {:.3} s",
            known.as_secs_f64(),
            (started.elapsed() - known).as_secs_f64()
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (repo, image, timings) = match arguments[..] {
        [WORKER_ARG, ..] => return pull::worker_main(),
        [repo, image] => (repo, image, false),
        [repo, image, "--timings"] => (repo, image, true),
        _ => {
            eprintln!("usage: pull REPO IMAGE [--timings]");
            return ExitCode::from(2);
        }
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    match runtime.block_on(run(repo, image, timings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}
