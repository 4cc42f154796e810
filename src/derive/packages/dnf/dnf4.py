# Runs with the target's own python3 and dnf 4, whose command line needs root and prints nothing that a program could read.
#
# The only argument is a file with a JSON object: install, remove, held, repos (lists of texts), offline, packages ("solve", "newest" or "fetch"), place (a directory).
# What comes out is what `dnf5 --store` and `dnf5 repo info --json` give: place/transaction.json, place/packages/* and
# place/repos.json. Exit 3: what is asked for cannot be met. Exit 4: a repository cannot be used.
import json
import os
import shutil
import sys

import dnf
import dnf.exceptions
import dnf.rpm


def opened():
    base = dnf.Base()
    conf = base.conf
    conf.read()
    conf.substitutions.update_from_etc(conf.installroot)
    release = dnf.rpm.detect_releasever(conf.installroot)
    if release:
        conf.releasever = release
    for name in [name for name, value in conf.substitutions.items() if value is None]:
        del conf.substitutions[name]
    conf.obsoletes = False
    conf.installonlypkgs = []
    # The one that runs is no part of the target.
    conf.protect_running_kernel = False
    conf.cachedir = "/var/cache/dnf"
    conf.persistdir = "/var/lib/dnf"
    conf.logdir = "/var/log"
    return base


def load(base, ask):
    if not ask["offline"]:
        base.read_all_repos()
        choose(base, ask["repos"], ask["named"])
    for repo in base.repos.iter_enabled():
        repo.skip_if_unavailable = False
    base.fill_sack()


def choose(base, ids, named):
    for name in named if ids == [] else ids:
        if name not in base.repos:
            raise dnf.exceptions.MarkingError("No matching repositories for %s." % name)
    for repo in base.repos.values() if ids else []:
        repo.enable() if repo.id in ids else repo.disable()
    for name in named if ids == [] else []:
        base.repos[name].enable()


def solve(base, ask):
    files = [request for request in ask["install"] if request.startswith("/")]
    available = base.sack.query().available()
    base.sack.add_excludes(available.filter(name=ask["held"]))
    for package in base.add_remote_rpms(files):
        base.package_install(package)
    for request in ask["install"]:
        if request not in files:
            base.install(request)
    for request in ask["remove"]:
        base.remove(request)
    base.resolve(allow_erasing=False)
    install = [item.pkg for item in base.transaction if item.pkg in base.transaction.install_set]
    gone = base.transaction.remove_set
    return install, gone


def newest(base, ask):
    found = base.sack.query().available().filterm(name=ask["install"]).latest()
    os.makedirs(ask["place"])
    with open(ask["place"] + "/newest", "w") as file:
        file.writelines("%s\n" % package for package in found)


def fetch(base, ask):
    found = []
    for nevra in ask["install"]:
        packages = base.sack.query().available().filterm(nevra_strict=nevra)
        if not packages:
            sys.exit(missing(nevra))
        found.append(packages[0])
    return found, []


def missing(nevra):
    print("no repository has %s" % nevra, file=sys.stderr)
    return 4


def store(base, place, install, gone):
    os.makedirs(place + "/packages")
    remote = [package for package in install if package.reponame != "@commandline"]
    base.download_packages(remote)
    rpms = []
    for package in install:
        name = os.path.basename(package.location)
        path = "packages/" + name
        if package in remote:
            local = package.localPkg()
            # What is in a directory of the host stays there.
            take = shutil.move if os.access(os.path.dirname(local), os.W_OK) else shutil.copyfile
            take(local, place + "/" + path)
        entry = {"nevra": str(package), "action": "Install", "repo_id": package.reponame, "package_path": path}
        rpms.append(entry)
    for package in gone:
        rpms.append({"nevra": str(package), "action": "Remove", "repo_id": "@System"})
    repos = []
    for repo in base.repos.iter_enabled():
        repos.append({"id": repo.id, "pkg_gpgcheck": bool(repo.gpgcheck), "gpg_key": list(repo.gpgkey)})
    for name, value in [("transaction.json", {"rpms": rpms}), ("repos.json", repos)]:
        with open(place + "/" + name, "w") as file:
            json.dump(value, file)


def main(ask):
    base = opened()
    try:
        load(base, ask)
        if ask["packages"] == "newest":
            return newest(base, ask)
        install, gone = solve(base, ask) if ask["packages"] == "solve" else fetch(base, ask)
        store(base, ask["place"], install, gone)
    except (dnf.exceptions.MarkingError, dnf.exceptions.DepsolveError) as error:
        print(error, file=sys.stderr)
        return 3
    except (dnf.exceptions.Error, OSError) as error:
        print(error, file=sys.stderr)
        return 4
    return 0


with open(sys.argv[1]) as file:
    question = json.load(file)
sys.exit(main(question))
