// The row of the family `conv` for the instruction set that this is compiled for.
#pragma once

#include "winograd.h"

namespace fastgraph {
namespace FASTGRAPH_ISA {
namespace {

constexpr ConvKernels kConv = {
    {kConvRows[0], kConvRows[1], kConvRows[2], kConvRows[3], kConvRows[4]}, kConvTiles.at, {kSpreadRows[0], kSpreadRows[1]},
    kConvSpreadTiles.at, conv_interleave, conv_transform, conv_finish, conv_largest, conv_activate};

}  // namespace
}  // namespace FASTGRAPH_ISA
}  // namespace fastgraph
