"""What draws: line charts for pages, figures as files,."""
