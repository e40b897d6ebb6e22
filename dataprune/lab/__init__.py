"""What the command line runs: data, models, training, sweeps over runs, reports. Nothing else imports it."""
