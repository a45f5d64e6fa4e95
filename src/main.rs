//! The `depsync` program: arguments → configuration → daemon → exit code.

fn main() -> std::process::ExitCode {
    depsync::cli::main()
}
