//! `astro-relay setup`: a first configuration in the browser.
//!
//! A page on the loopback asks the same questions as `init`, tries each answer at once (the token against
//! Astro, a destination by connecting and by a test event), and writes the configuration.
//!
//! Who opens the page must show a code that is made for this run and stands in the address that is printed,
//! behind the `#`, so that no server and no log gets it. Ten wrong codes end the command. Secrets are kept
//! in memory until they are written, each into a file of its own; nothing that was typed is sent back.

mod form;
mod server;

use std::{io::Write as _, net::SocketAddr, path::PathBuf, sync::Arc};

use clap::Args;
use tokio::{net::TcpListener, sync::Mutex};
use tokio_util::sync::CancellationToken;

use super::{Done, Failed, client::silent, listen, on_runtime, out, termination};

/// What `setup` takes.
#[derive(Debug, Args)]
pub(super) struct Setup {
    /// The file to write.
    #[arg(short, long, value_name = "FILE", default_value = "astro-relay.toml")]
    config: PathBuf,
    /// Where the page is: an address of the loopback, or a port of it; 0 takes any that is free.
    #[arg(long, default_value = "127.0.0.1:0", value_parser = listen)]
    listen: SocketAddr,
    /// Another gateway than Astro's: that of `astro-relay sim`, to try this out.
    #[arg(long, value_name = "URL", requires = "api_url")]
    astro_url: Option<String>,
    /// The REST API that belongs to it.
    #[arg(long, value_name = "URL", requires = "astro_url")]
    api_url: Option<String>,
}

pub(super) fn setup(args: Setup) -> Done {
    if !args.listen.ip().is_loopback() {
        let why = "setup takes secrets: it listens on the loopback only. From another machine: \
                   ssh -L 9465:127.0.0.1:9465 HOST astro-relay setup --listen 9465";
        return Err(Failed::new(Failed::USAGE, why));
    }
    let file = std::path::absolute(&args.config)?;
    let astro = [("url", args.astro_url), ("api_url", args.api_url)];
    let astro = astro.into_iter().filter_map(|(key, url)| Some((key.to_owned(), url?))).collect();
    on_runtime(2, &silent(), async move {
        let ended = termination()?;
        let listener = TcpListener::bind(args.listen).await?;
        let address = listener.local_addr()?;
        let code = code();
        {
            let mut out = out::text();
            writeln!(out, "Open this address in a browser on this machine:\n")?;
            writeln!(out, "  http://{address}/#{code}\n")?;
            writeln!(
                out,
                "From another machine, first:  ssh -L {0}:{address} HOST",
                address.port()
            )?;
            writeln!(out, "It writes {}. Ctrl-C ends it.", file.display())?;
        }
        let stop = CancellationToken::new();
        let wizard = Arc::new(server::Wizard {
            code,
            file,
            astro,
            address,
            wrong: Mutex::default(),
            saved: Mutex::default(),
            stop: stop.clone(),
        });
        let serving = server::serve(listener, Arc::clone(&wizard));
        tokio::select! {
            () = serving => {}
            () = ended => stop.cancel(),
        }
        let saved = wizard.saved.lock().await.take();
        let mut out = out::text();
        match saved {
            Some(written) => {
                written.print(&mut out)?;
                let file = written.file.display();
                Ok(writeln!(out, "run it:  astro-relay run --config {file}")?)
            }
            None => Err(Failed::new(Failed::TEMPORARY, "nothing was written")),
        }
    })
}

/// 80 bits that nobody guesses.
fn code() -> String {
    let random = ulid::Ulid::new().random() ^ (u128::from(fastrand::u64(..)) << 16);
    format!("{random:020x}")
}
