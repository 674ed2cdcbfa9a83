#!/bin/sh
# A row of docs/accuracy.md: trains a network, segments images that its training left out, and
# compares them with their truth.
#
#   deploy/training/accuracy.sh ROW DATA FOLDER [OPTION...]
#
# ROW is membrane, nuclei, landcover, brain, camvid or phenobench; DATA the folder of its images and
# labels, as the recipe of the same name beside this file says; results go to FOLDER. OPTIONS are
# those of `maskloom train`, such as `--set training.epochs=60`. The rows nuclei and brain train
# nothing.
set -eu

if [ $# -lt 3 ]; then
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
row=$1
here=$(dirname "$(realpath "$0")")
data=$(realpath "$2")
mkdir -p "$3"
folder=$(realpath "$3")
shift 3
cd "$folder"

train() {
    maskloom train "$here/$row.yaml" --quiet --set "output=$folder/model" "$@"
}

segment() {
    maskloom segment "$@" --no-prefect --quiet --set cluster=serial
}

by_unet() {
    segment "$@" -o masks -s unet -p "weights=$folder/model/$row.keras"
}

case $row in
membrane)
    MEMBRANE=$data train "$@"
    by_unet "$data"/images/slice_1[6-9].png "$data"/images/slice_2?.png
    maskloom evaluate masks --truth "$data/labels" --values 0=membrane,255=inside --quiet
    ;;
nuclei)
    python "$here/nuclei_images.py" "$data/images" "$data/labels" images
    for kind in fluorescence stained brightfield; do
        # Every fifth group, as in nuclei.yaml.
        segment images/images/"$kind"-??[05]-* -o "$kind" -s instances -p weights=nuclei
        maskloom evaluate "$kind" --truth "images/labels/$kind-*" --quiet
    done
    ;;
landcover)
    train --set "images=$data/images" --set "masks=$data/labels" "$@"
    by_unet "$data"/images/tile5_*.jpg
    maskloom evaluate masks --truth "$data/labels/tile5_*" --void rest --quiet --values \
        '#3C1098=building,#8429F6=land,#6EC1E4=road,#FEDD3A=vegetation,#E2A929=water'
    ;;
brain)
    ln -sf "$data"/images/*.nii.gz brain.nii.gz
    mkdir -p labels
    ln -sf "$data"/labels/*.nii.gz labels/brain.nii.gz
    maskloom run "$here/../recipes/brain-tissue.yaml" --no-prefect --quiet \
        --set "inputs=$folder/brain.nii.gz" --set "output=$folder/masks" --set cluster=serial
    maskloom evaluate masks --truth labels --void 0 --quiet \
        --values '1=csf,2=grey matter,3=white matter'
    ;;
camvid)
    CAMVID=$data train "$@"
    by_unet "$data/test"
    maskloom evaluate masks --truth "$data/testannot" --void 11 --quiet
    ;;
phenobench)
    PHENOBENCH=$data train "$@"
    by_unet "$data/val/images"
    maskloom evaluate masks --truth "$data/val/semantics" --quiet \
        --values 0=soil,1=crop,2=weed,3=crop,4=weed
    ;;
*)
    echo "$0: no row $row" >&2
    exit 2
    ;;
esac
