"""The zoo: small reference networks, each with the script that trained it or the file that its weights come from."""
